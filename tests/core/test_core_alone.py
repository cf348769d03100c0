"""All that swapjax does without a package of any extra."""

import subprocess
import sys
from pathlib import Path

from swapjax.core import extras
from swapjax.pruning.methods import METHODS
from swapjax.training.rules import RULES

EXTRA = sorted({n for names in extras.PACKAGES.values() for n in names})


def test_every_method_and_rule_runs_with_the_core_alone():
    script = Path(__file__).with_name("core_alone.py")
    command = [sys.executable, script, "--block", *EXTRA]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert done.stdout.splitlines() == [*METHODS, *RULES, "saved and loaded"]
