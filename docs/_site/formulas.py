"""Turn formulas into MathML while the site is built, so that no script is loaded."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\(?:\(|\[)(.*?)\\(?:\)|\])</\1>', re.DOTALL
)
BAR = re.compile("<mo[^>]*>(&#x0007C;|&#x02016;|\\||\u2016)</mo>")  # no space around


def on_page_content(content: str, **_: Any) -> str:
    """Replace what arithmatex marked, on a page as Markdown left it."""

    def one(match: re.Match) -> str:
        display = "block" if match[1] == "div" else "inline"
        formula = convert(html.unescape(match[2]).strip(), display=display)
        formula = BAR.sub(
            r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>', formula
        )
        return f'<{match[1]} class="formula">{formula}</{match[1]}>'

    return FORMULA.sub(one, content)
