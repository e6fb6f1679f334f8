"""A web page in one file: sections with text, tables, figures and pictures, all embedded.

Nothing is loaded from elsewhere and no script runs, so the page can be mailed, archived and opened without a network.
"""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { --ink: #1d2330; --soft: #5b6475; --line: #dde1e8; --wash: #f5f6f9; --accent: #2f5d9b; --warn: #8a5a00; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 15px/1.55 system-ui, "Segoe UI", sans-serif; }
header, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 36px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 44px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 22px 0 8px; }
p { margin: 0 0 12px; max-width: 78ch; }
.soft, figcaption { color: var(--soft); font-size: 13px; }
.banner { margin: 16px 0 0; padding: 10px 14px; border-left: 4px solid var(--warn); background: #fdf6e7; }
nav { margin-top: 14px; font-size: 13.5px; display: flex; flex-wrap: wrap; gap: 4px 16px; }
nav a { color: var(--accent); text-decoration: none; }
nav a.missing { color: var(--soft); }
.scroll { overflow-x: auto; margin: 0 0 16px; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td { white-space: nowrap; }
table.wrap td { white-space: normal; overflow-wrap: anywhere; }
.missing { color: var(--soft); font-style: italic; }
figure { margin: 0 0 18px; }
figure > img { max-width: 100%; height: auto; display: block; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(236px, 1fr)); gap: 14px 18px; margin: 0 0 18px; }
.set { display: flex; gap: 4px; margin: 0; }
.set > div { flex: 1 1 0; min-width: 0; }
.set img { width: 100%; display: block; border-radius: 3px; background: var(--wash); }
.set span { display: block; font-size: 11px; color: var(--soft); margin-top: 2px; }
.card { margin: 0; } .card figcaption { font-size: 12px; margin-top: 2px; }
.card > img { width: 100%; border-radius: 3px; border: 1px solid var(--line); }
.wide { grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); }
pre { background: var(--wash); padding: 10px 14px; overflow-x: auto; font-size: 12.5px; border-radius: 4px; }
footer { color: var(--soft); font-size: 12.5px; padding: 26px 24px 44px; }
@media print { h2 { break-after: avoid; } figure, .set { break-inside: avoid; } }
"""


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that carries its own content."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(source: Path | np.ndarray, alt: str, *, max_side: int = 768) -> str:
    """An ``<img>`` of a file, or of uint8 [H, W, 3], shrunk if larger than ``max_side``.

    Small pictures stay PNG without loss; large ones become JPEG.
    """
    image = Image.fromarray(source) if isinstance(source, np.ndarray) else Image.open(source)
    with image:
        image = image.convert("RGB")
        image.thumbnail((max_side, max_side))
        large = image.width * image.height > 256 * 256
        buffer = io.BytesIO()
        image.save(buffer, "JPEG" if large else "PNG", **({"quality": 88} if large else {"optimize": True}))
    uri = data_uri(buffer.getvalue(), "image/jpeg" if large else "image/png")
    return f'<img src="{uri}" alt="{escape(alt, quote=True)}" loading="lazy">'


def drawing(figure: Figure, alt: str, caption: str = "", *, vector: bool = True) -> str:
    """A matplotlib figure with a caption, as SVG (or PNG where there are too many points); the figure is closed."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    metadata = {"Date": None} if vector else {}
    figure.savefig(buffer, format="svg" if vector else "png", dpi=130, bbox_inches="tight", metadata=metadata)
    plt.close(figure)
    uri = data_uri(buffer.getvalue(), "image/svg+xml" if vector else "image/png")
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{uri}" alt="{escape(alt, quote=True)}">{note}</figure>'


def table(header: list[str], lines: list[list[str]], *, wrap: bool = False) -> str:
    """A table of plain text cells."""

    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(cells, "td") for cells in lines)
    kind = ' class="wrap"' if wrap else ""
    return f'<div class="scroll"><table{kind}><thead>{line(header, "th")}</thead><tbody>{body}</tbody></table></div>'


def paragraph(text: str, *, soft: bool = False) -> str:
    """A paragraph of plain text."""
    return f"<p{' class=soft' if soft else ''}>{escape(text)}</p>"


def missing(text: str) -> str:
    """A sentence that stands where a result would, so that nothing is silently absent."""
    return f'<p class="missing">{escape(text)}</p>'


def commands(lines: list[str]) -> str:
    """Command lines as they would be typed."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


class Page:
    """Sections in order; ``html()`` puts a table of contents before them."""

    def __init__(self, title: str, *, subtitle: str = "", banner: str = "") -> None:
        self.title, self.subtitle, self.banner = title, subtitle, banner
        self.sections: list[tuple[str, str, str]] = []

    def section(self, name: str, title: str, *parts: str) -> None:
        """Append a section; ``name`` is its anchor."""
        self.sections.append((name, title, "\n".join(parts)))

    def html(self) -> str:
        """The whole page."""
        links = "".join(
            f'<a href="#{name}"{" class=missing" if content.startswith("<p class=" + chr(34) + "missing") else ""}>'
            f"{escape(title)}</a>"
            for name, title, content in self.sections
        )
        body = "\n".join(f'<h2 id="{name}">{escape(title)}</h2>\n{content}' for name, title, content in self.sections)
        banner = f'<p class="banner">{escape(self.banner)}</p>' if self.banner else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head><body>"
            f"<header><h1>{escape(self.title)}</h1><p class=soft>{escape(self.subtitle)}</p>{banner}<nav>{links}</nav>"
            f"</header>\n<main>\n{body}\n</main>\n<footer>One file: pictures, figures and tables are embedded.</footer>"
            "</body></html>\n"
        )
