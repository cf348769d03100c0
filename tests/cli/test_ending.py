"""How commands end: codes, signals, readers that leave, what reaches a terminal."""

import io
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from swapjax.cli import ending, main
from swapjax.cli.console import Screen
from swapjax.experiments import report

# What a terminal would obey or hide, and what it may show.
OBEYED = {
    "a\x1b[31mred": r"a\x1b[31mred",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "c1\x9b2J": r"c1\x9b2J",
    "up\x1b[1A\rdown": r"up\x1b[1A\rdown",
    "two\nlines": r"two\nlines",
    "bell\x07\x08\x7f": r"bell\x07\x08\x7f",
    "turned\u202egnp.exe": r"turned\u202egnp.exe",
    "hidden\u200b\ufeff": r"hidden\u200b\ufeff",
    "half\udcff": r"half\udcff",
    "[bold]x[/bold]:bomb:": "[bold]x[/bold]:bomb:",
    "名前é😀": "名前é😀",
}


def code_of(work, process=False):
    def run(loaded):
        loaded()
        work()

    return ending.code_of(run, process)


def raises(error):
    def work():
        raise error

    return work


def script(text):
    """Run Python that has a command at work, and no JAX."""
    text = f"import gc, os, sys, time\nfrom swapjax.cli import ending\n{text}"
    command = [sys.executable, "-c", text]
    return subprocess.run(command, capture_output=True, text=True)


# Codes and sentences


@pytest.mark.parametrize(
    ("error", "saying"),
    [
        (ValueError("--out: no"), "swapjax: --out: no"),
        (ImportError("swapjax demo needs rich"), "swapjax demo needs rich"),
        (OSError(28, "No space left on device"), "swapjax: [Errno 28] No space left"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "no"), "swapjax: 'ascii' codec can't"),
        (ValueError(), "swapjax: ValueError"),
        (ValueError("two\nlines\x1b[2J\u202e"), r"swapjax: two\nlines\x1b[2J\u202e"),
    ],
)
def test_what_goes_wrong_is_one_line_and_code_2(error, saying, capsys):
    assert code_of(raises(error)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(saying)
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable()


def test_faults_of_the_program_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        code_of(lambda: 1 / 0)


@pytest.mark.parametrize(
    ("name", "code", "word"),
    [
        ("SIGINT", 130, "interrupted"),
        ("SIGTERM", 143, "terminated"),
        ("SIGHUP", 129, "hung up"),
    ],
)
@pytest.mark.parametrize("made", [None, RuntimeError, ValueError])
def test_signals_are_a_line_and_their_code_whatever_becomes_of_them(
    name, code, word, made, capsys
):
    number = getattr(signal, name)
    before = signal.getsignal(number)

    def work():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as e:
            raise (made("INTERNAL: callback failed") if made else e) from None

    assert code_of(work) == code
    err = capsys.readouterr().err
    assert err.startswith(f"swapjax: {word}. Stages, epochs and runs that were finish")
    assert err.count("\n") == 1
    assert signal.getsignal(number) is before


def test_signals_that_are_ignored_stay_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert code_of(lambda: signal.raise_signal(signal.SIGINT)) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_alarms_of_the_caller_are_left_alone():
    before = signal.getsignal(signal.SIGALRM)
    assert code_of(lambda: None) == 0
    assert signal.getsignal(signal.SIGALRM) is before


def test_an_interrupt_that_python_drops_comes_again():
    done = script("""
class Dropped:
    def __del__(self):
        os.kill(os.getpid(), 2)
        time.sleep(0.01)

def work(loaded):
    loaded()
    Dropped()
    time.sleep(20)
    print("deaf")

sys.exit(ending.code_of(work, process=True))
""")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("swapjax: interrupted.")
    assert done.stderr.count("\n") == 1


def test_while_it_loads_a_process_is_left_at_once():
    done = script("""
def work(loaded):
    try:
        os.kill(os.getpid(), 15)
        time.sleep(20)
    finally:
        print("unwound")

sys.exit(ending.code_of(work, process=True))
""")
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr == "swapjax: terminated.\n"


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_that_leaves_the_text_of_an_exec_does_not_kill_the_process(name, code):
    done = script(f"""
def work(loaded):
    loaded()
    exec("import signal\\nsignal.raise_signal(signal.{name})")

print(ending.code_of(work, process=True))
""")
    assert (done.returncode, done.stdout) == (0, f"{code}\n")


# Readers that leave, streams that are closed or full


def closed_reader():
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("words", [["--help"], ["prune", "--help"]])
def test_a_reader_that_leaves_is_no_fault(words):
    pipe = closed_reader()
    command = [sys.executable, "-m", "swapjax.cli", *words]
    done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_the_output_is_a_sentence():
    command = [sys.executable, "-m", "swapjax.cli", "--help"]
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert done.returncode == 2
    assert done.stderr == "swapjax: [Errno 28] No space left on device\n"


def test_streams_that_are_closed_are_opened_to_nowhere(tmp_path):
    file = tmp_path / "result"
    text = f"""
import os, sys
from swapjax.cli import ending
with ending.streams(True):
    file = os.open({str(file)!r}, os.O_CREAT | os.O_WRONLY)
    print("said", flush=True)
    os.write(1, b"by a library")
    print("said", file=sys.stderr, flush=True)
"""
    shell = f"exec {sys.executable} -c '{text}' <&- >&- 2>&-".replace("'/", '"/')
    shell = shell.replace("result'", 'result"')
    assert subprocess.run(["sh", "-c", shell]).returncode == 0
    assert file.read_bytes() == b""


class Pipe(io.StringIO):
    """A stream that breaks after its first lines."""

    def write(self, text):
        if self.tell():
            raise BrokenPipeError
        return super().write(text)


def test_a_screen_goes_on_in_silence_when_its_reader_leaves():
    file = Pipe()
    screen = Screen(file=file)
    for line in ("first", "second", "third"):
        screen.print(line)
    assert file.getvalue() == "first\n"


# What reaches a terminal


@pytest.mark.parametrize("name", OBEYED)
def test_a_screen_shows_names_and_obeys_none(name):
    file = io.StringIO()
    Screen(file=file, width=100).print(f"{name} is", soft_wrap=True)
    assert file.getvalue().rstrip("\n") == f"{OBEYED[name]} is".replace(r"\n", "\n")


def test_inspect_shows_names_of_leaves_and_files_and_obeys_none(
    tmp_path, capsys, monkeypatch
):
    names = [name for name in OBEYED if "\udcff" not in name]
    path = tmp_path / "x\x1b[2J\n.safetensors"
    save_file({name: np.ones(2, np.float32) for name in names}, path)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    for name in names:
        assert f" {OBEYED[name]} " in out
    assert r"x\x1b[2J\n.safetensors" in out
    assert out.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "words",
    [
        ["\x1b[31mprune"],
        ["prune", "--out", "x", "--met\x1b[31mhod", "swap"],
        ["prune", "--out", "x", "--method", "sw\x1b]0;x\x07ap"],
        ["prune", "--out", "x", "--stages", "\u202e1"],
        ["train", "--out", "x", "one\nmore"],
        ["inspect", "a", "\x9b2J"],
    ],
)
def test_words_that_are_no_options_are_shown_and_not_obeyed(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert capsys.readouterr().err.replace("\n", "").isprintable()


def test_words_that_are_names_are_taken_as_they_are(tmp_path, capsys):
    path = tmp_path / "a\x1b[31m\nb.npz"
    np.savez(path, x=np.ones(3))
    assert main(["inspect", str(path)]) == 0
    assert main(["inspect", str(path) + "\r"]) == 2
    err = capsys.readouterr().err
    assert err == f"swapjax: {tmp_path}/a\\x1b[31m\\nb.npz\\r: no such file\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding_gets_what_it_can_show(encoding):
    file = io.TextIOWrapper(io.BytesIO(), encoding, errors="backslashreplace")
    screen = Screen(file=file, width=60)
    rows = [{"leaf": "größe/名前😀", "shape": [3], "entries": 3, "nonzeros": 3}]
    screen.print(report.layer_table(rows))
    text = file.buffer.getvalue().decode(encoding)
    assert ("größe/名前😀" in text) == (encoding == "utf-8")
    assert ("┃" in text) == (encoding == "utf-8")


def test_warnings_are_one_line_without_code():
    done = script("""
import warnings

def work(loaded):
    loaded()
    warnings.warn("a state of\\nanother \\x1b[31mversion")

sys.exit(ending.code_of(work, process=True))
""")
    assert done.returncode == 0
    assert done.stderr == "swapjax: a state of\\nanother \\x1b[31mversion\n"


@pytest.mark.parametrize("module", ["console", "options", "train_options", "prune"])
def test_a_room_of_the_command_line_without_rich_is_one_sentence(module):
    done = script(f"""
import importlib
sys.modules["rich"] = sys.modules["tyro"] = None
try:
    importlib.import_module("swapjax.cli.{module}")
except ImportError as e:
    print(e)
""")
    assert 'pip install "swapjax[' in done.stdout
    assert done.stdout.count("\n") == 1
