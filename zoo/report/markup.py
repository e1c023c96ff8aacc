"""Text, pictures and the page around them. What comes from a card is a stranger's: it passes through here and comes out
as text.
"""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path
from typing import Any

from PIL import Image

from zoo import __version__

# Whatever might slip through, the page may load nothing but what it holds itself, and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
ADDRESS = re.compile(
    r"(https://[A-Za-z0-9.-]+(?![A-Za-z0-9.:@-])(?:[/?#][!#-;=?-~]*)?)"
)  # a host and no more: no user, no port
LARGEST = 4096  # pixels a side of a picture from a card; a larger one could choke a browser
STYLE = Path(__file__).with_name("style.css")


def document(title: str, body: str) -> str:
    """The whole page: everything inside one file, light or dark as the reader's system is."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{text(title)}</title>",
            f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>",
            "</head>",
            "<body>",
            "<main>",
            body,
            "</main>",
            f"<footer><p>Made by <code>zoo report</code>, pretext-zoo {text(__version__)}.</p></footer>",
            "</body>",
            "</html>",
            "",
        ]
    )


def text(value: Any) -> str:
    """One line of text without any meaning as HTML, quotes included."""
    return html.escape(" ".join(str(value).split()))


def linked(value: Any) -> str:
    """`text` in which https addresses, and no others, can be followed."""
    parts = ADDRESS.split(" ".join(str(value).split()))
    return "".join(_link(part) if number % 2 else html.escape(part) for number, part in enumerate(parts))


def _link(address: str) -> str:
    end = address.rstrip(".,;:!?)]}'")  # these belong to the sentence around it
    return (
        f'<a href="{html.escape(end)}" rel="noopener '
        f'noreferrer">{html.escape(end)}</a>{html.escape(address[len(end) :])}'
    )


def picture(png: bytes, alt: str, css: str = "") -> str | None:
    """<img> with the picture inside it; None for bytes that aren't a PNG of a size that can be shown."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:  # reads the header, and decodes nothing
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    if max(width, height) > LARGEST:
        return None
    kind = f' class="{css}"' if css else ""
    return (
        f'<img{kind} src="data:image/png;base64,{base64.b64encode(png).decode()}" width="{width}" '
        f'height="{height}" alt="{text(alt)}">'
    )


def pairs(css: str, facts: list[tuple[str, str]]) -> str:
    """A list of names and values; both are HTML already."""
    return "\n".join(
        [f'<dl class="{css}">', *(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts), "</dl>"]
    )
