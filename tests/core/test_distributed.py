"""Two processes on loopback, each with two devices, prune one network."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from network import loss_fn, to_shard

import swapjax

HERE = Path(__file__).parent


@pytest.mark.usefixtures("x64")
def test_two_processes_prune_as_one_does(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    target = tmp_path / "params.npz"
    script = str(HERE / "one_of_two.py")
    path = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    started = [
        subprocess.Popen(
            [sys.executable, script, port, number, target],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        )
        for number in "01"
    ]
    try:
        for process in started:
            said, _ = process.communicate(timeout=240)
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in started:
            process.kill()
    method = swapjax.swap(damping=0.1, support="magnitude", first_order=False, rounds=2)
    alone = swapjax.prune(
        loss_fn, *to_shard("float64"), sparsity=0.7, method=method, samples=45,
        stages=2, key=jax.random.key(1),
    )  # fmt: skip
    with np.load(target) as found:
        for name in ("fc1", "fc2"):
            expected = np.asarray(alone.params[name]["kernel"])
            np.testing.assert_array_equal(found[name] != 0, expected != 0)
            np.testing.assert_allclose(found[name], expected, rtol=1e-8, atol=1e-10)
