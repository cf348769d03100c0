"""Text of others as a screen may show it."""

_LONGEST = 300  # characters of another's message; ours name the file besides


def printable(text: object, keep: str = "") -> str:
    r"""Spell out what a terminal would obey or hide instead of showing it.

    Names of leaves and files come from elsewhere: escape sequences in them would
    colour, move or overwrite what stands around them, marks of direction would turn it
    around, and half of a surrogate pair cannot be encoded.

    Args:
        text: or what has a text.
        keep: characters to leave alone, a line feed for instance.

    Returns:
        The text, with control and format characters as Python would write them: an
        escape as ``\x1b``, a line feed as ``\n``.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        c if c in keep or c.isprintable() else c.encode("unicode_escape").decode()
        for c in text
    )


def reason(error: BaseException) -> str:
    """Take the first line of what an error says, or its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = printable(lines[0] if lines else type(error).__name__)
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]}..."
