"""Text of others in our sentences: names out of files, messages of libraries."""

_LONGEST = 300  # characters of another's message; ours name the file besides


def printable(text: object) -> str:
    r"""Escape what would steer a terminal, or cannot be seen.

    Args:
        text: a name or a path; its ``str`` is taken.

    Returns:
        One line: control characters, marks of direction and bytes that are no UTF-8
        are written as in Python, ``\x1b``.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)
    )


def reason(error: BaseException) -> str:
    """Take the first line of what an error says, or its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = printable(lines[0] if lines else type(error).__name__)
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]}..."
