"""Text of others as a screen may show it."""


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
