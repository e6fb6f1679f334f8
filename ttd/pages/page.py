"""A web page of sections with text, tables, figures and pictures: one file that embeds all, or one folder.

Nothing is loaded from elsewhere, so a page can be mailed, archived and opened without a network. One in a single file runs
no script; one in a folder keeps its pictures beside it, loaded when they come into sight, and may carry scripts.
"""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ASSETS = Path(__file__).parent / "assets"

STYLE = (ASSETS / "page.css").read_text(encoding="utf-8")

Stimuli = Literal["free", "marked", "leave_out"]

NOT_FREE = "not for republication"


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that carries its own content."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def encoded(source: Path | np.ndarray, *, max_side: int) -> tuple[bytes, str, tuple[int, int]]:
    """A picture file, or uint8 [H, W, 3], shrunk if larger than ``max_side``: content, suffix, (width, height).

    Small pictures stay PNG without loss; large ones, and those that are shrunk anyway, become JPEG.
    """
    image = Image.fromarray(source) if isinstance(source, np.ndarray) else Image.open(source)
    with image:
        image = image.convert("RGB")
        lossy = max(image.size) > max_side or image.width * image.height > 256 * 256
        image.thumbnail((max_side, max_side))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG" if lossy else "PNG", **({"quality": 88} if lossy else {"optimize": True}))
    return buffer.getvalue(), "jpeg" if lossy else "png", image.size


def _img(src: str, alt: str, size: tuple[int, int]) -> str:
    place = f'width="{size[0]}" height="{size[1]}" loading="lazy" decoding="async"'
    return f'<img src="{src}" alt="{escape(alt, quote=True)}" {place}>'


def picture(source: Path | np.ndarray, alt: str, *, max_side: int = 768) -> str:
    """An ``<img>`` that carries a picture file, or uint8 [H, W, 3], shrunk if larger than ``max_side``."""
    content, suffix, size = encoded(source, max_side=max_side)
    return _img(data_uri(content, f"image/{suffix}"), alt, size)


def drawing(figure: Figure, alt: str, caption: str = "", *, vector: bool = True) -> str:
    """A matplotlib figure with a caption, as SVG (or PNG where there are too many points); the figure is closed.

    One that is wider than 7 inches scrolls on a telephone instead of shrinking to nothing.
    """
    import matplotlib.pyplot as plt

    kind = ' class="long" tabindex="0"' if figure.get_size_inches()[0] > 7 else ""
    buffer = io.BytesIO()
    metadata = {"Date": None} if vector else {}
    figure.savefig(buffer, format="svg" if vector else "png", dpi=130, bbox_inches="tight", metadata=metadata)
    plt.close(figure)
    uri = data_uri(buffer.getvalue(), "image/svg+xml" if vector else "image/png")
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure{kind}><img src="{uri}" alt="{escape(alt, quote=True)}">{note}</figure>'


def table(header: list[str], lines: list[list[str]], *, wrap: bool = False) -> str:
    """A table of plain text cells; one that is wider than the page scrolls in its own box."""

    def line(cells: list[str], tag: str) -> str:
        close = tag.split()[0]
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{close}>" for cell in cells) + "</tr>"

    body = "".join(line(cells, "td") for cells in lines)
    kind = ' class="wrap"' if wrap else ""
    about = escape("table: " + ", ".join(filter(None, header)), quote=True)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{about}"><table{kind}>'
        f"<thead>{line(header, 'th scope=col')}</thead><tbody>{body}</tbody></table></div>"
    )


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
    """Sections in order; ``html()`` puts a table of contents before them.

    ``stimuli`` says what ``stimulus`` does with pictures that were shown: ``free`` ones appear as they are, ``marked`` ones
    under the words "not for republication", and ``leave_out`` puts their names in their places.
    """

    def __init__(
        self,
        title: str,
        *,
        subtitle: str = "",
        banner: str = "",
        folder: Path | None = None,
        stimuli: Stimuli = "free",
    ) -> None:
        self.title, self.subtitle, self.banner, self.folder, self.stimuli = title, subtitle, banner, folder, stimuli
        self.sections: list[tuple[str, str, str]] = []
        self.styles: list[str] = [STYLE]
        self.scripts: list[str] = []

    def image(self, source: Path | np.ndarray, alt: str, *, max_side: int = 256) -> str:
        """An ``<img>`` of a picture kept once below ``folder/pictures``, named by its content; embedded without a folder.

        Raises:
            OSError: the file is not there or is no picture.
        """
        if self.folder is None:
            return picture(source, alt, max_side=max_side)
        content, suffix, size = encoded(source, max_side=max_side)
        name = f"{hashlib.sha256(content).hexdigest()[:16]}.{suffix}"
        target = self.folder / "pictures" / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return _img(f"pictures/{name}", alt, size)

    def stimulus(self, source: Path | np.ndarray, alt: str, name: str, *, max_side: int = 256) -> str:
        """A picture that was shown, its mark below it where it is not free, or only its ``name``.

        Raises:
            OSError: the file is not there or is no picture.
        """
        if self.stimuli == "leave_out":
            return f'<div class="left-out">{escape(name)}</div>'
        mark = f'<span class="mark">{NOT_FREE}</span>' if self.stimuli == "marked" else ""
        return self.image(source, alt, max_side=max_side) + mark

    def style(self, name: str) -> None:
        """Add a style sheet of the assets, once."""
        content = (ASSETS / name).read_text(encoding="utf-8")
        if content not in self.styles:
            self.styles.append(content)

    def script(self, name: str) -> None:
        """Let a script of the assets run after the page; only a page in a folder may have one."""
        assert self.folder is not None, "a page in one file runs no script"
        self.asset(name)
        if name not in self.scripts:
            self.scripts.append(name)

    def asset(self, name: str) -> None:
        """Copy a file of the assets into ``folder/assets``."""
        assert self.folder is not None, "a page in one file has no files beside it"
        (self.folder / "assets").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ASSETS / name, self.folder / "assets" / name)

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
        body = "\n".join(
            f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(title)}</h2>\n{content}'
            "\n</section>"
            for name, title, content in self.sections
        )
        banner = f'<p class="banner" role="note">{escape(self.banner)}</p>' if self.banner else ""
        scripts = "".join(f'<script src="assets/{name}" defer></script>' for name in self.scripts)
        kind = "One file: pictures, figures and tables are embedded."
        if self.folder is not None:
            kind = "One folder: everything that the page shows lies in it; nothing is loaded from elsewhere."
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{''.join(self.styles)}</style>{scripts}</head><body>"
            '<a class="skip" href="#content">to the content</a>'
            f"<header><h1>{escape(self.title)}</h1><p class=soft>{escape(self.subtitle)}</p>{banner}"
            f'<nav aria-label="contents">{links}</nav></header>\n<main id="content">\n{body}\n</main>\n'
            f"<footer>{kind}</footer></body></html>\n"
        )
