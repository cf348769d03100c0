"""Work kept warm in processes of their own, asked for one piece at a time.

Standard library alone: pythons without JAX serve with it too.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

Seconds = dict[str, float]
Calls = Mapping[str, Callable[[], Seconds]]


class MissingError(Exception):
    """A service that cannot be had, with the reason."""


class Service:
    """A process that does named pieces of work, and tells the seconds of each.

    Args:
        command: of a script that ends in `serve`.
        environment: of the process.

    Raises:
        MissingError: if it could not make itself ready, with its reason.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        if not Path(command[0]).exists():
            raise MissingError(f"there is no {command[0]}")
        self._process = subprocess.Popen(
            command, env=dict(environment), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.names: list[str] = self._answer()["names"]

    def call(self, name: str) -> Seconds:
        """Do a piece of work.

        Returns:
            Its seconds: ``total``, of the parts that it tells of, and ``cpu``, which
            all threads of the process used; and its peak memory so far, in bytes.

        Raises:
            MissingError: if it failed, with its reason.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise MissingError(f"its process ended with {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            self.close()
            raise MissingError(answer["error"])
        return answer


def clocked(work: Callable[[], object]) -> Seconds:
    """Do a piece of work, and tell its seconds and those of all its threads."""
    used, started = time.process_time(), time.perf_counter()
    work()
    total = time.perf_counter() - started
    return {"total": total, "cpu": time.process_time() - used}


def serve(make: Callable[[], Calls]) -> None:
    """Do what standard input asks for, a name a line, until it ends.

    What the work prints goes nowhere: answers have standard output for themselves.

    Args:
        make: gives the pieces of work by name; what it raises is told as the reason
            why there is no such service.
    """
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)

        def tell(answer: dict) -> None:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()

        with contextlib.redirect_stdout(nowhere):
            try:
                calls = make()
                tell({"names": list(calls)})
                for line in sys.stdin:
                    used = calls[line.strip()]()
                    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                    tell({**used, "peak": 1024.0 * peak})
            # Whatever somebody else's code raises is a reason to go on without it.
            except Exception as e:
                tell({"error": f"{type(e).__name__}: {e}"})
