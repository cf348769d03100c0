"""What others call things, and say, on a line of ours."""

import pytest

from swapjax.core.text import printable, reason


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fc1/kernel", "fc1/kernel"),
        ("Größe 層", "Größe 層"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\u202eabc", r"\u202eabc"),
        ("\x9b2J", r"\x9b2J"),
        ("\udcff", r"\udcff"),
        (3, "3"),
    ],
)
def test_what_steers_a_terminal_is_spelt_out(text, shown):
    assert printable(text) == shown
    assert printable("a\nb", keep="\n") == "a\nb"


def test_of_an_error_its_first_line_is_told():
    assert reason(ValueError("\n  first\nsecond")) == "first"
    assert reason(MemoryError()) == "MemoryError"
    assert reason(ValueError("\x1b[2J")) == r"\x1b[2J"
    assert len(reason(ValueError("x" * 10_000))) == 303
