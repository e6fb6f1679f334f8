"""Chromium opens reports from disk; every request and every word on the console is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from report_folder_study import SOFTWARE_GL, config_of, write_runs, write_solids, write_study

from ttd.pages.report import build_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """``index.html`` of a report of 12 items, three of them lifted."""
    root = tmp_path_factory.mktemp("small")
    write_study(root / "paired")
    write_runs(root, 12)
    write_solids(root / "lift", 3, subdivisions=3)
    return build_report(config_of(root))


@pytest.fixture(scope="session")
def playwright() -> Iterator:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as running:
        yield running


class Opened:
    """A page in a browser, with what it asked for and what it said."""

    def __init__(self, page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))

    def outside(self) -> list[str]:
        return [url for url in self.requests if url.split(":")[0] not in ("file", "data", "blob")]

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.fixture(scope="session")
def browsers(playwright) -> Iterator[Callable]:
    running: dict[tuple[str, ...], object] = {}

    def browser(flags: tuple[str, ...]):
        if flags not in running:
            running[flags] = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *flags])
        return running[flags]

    yield browser
    for each in running.values():
        each.close()


@pytest.fixture
def visit(browsers) -> Iterator[Callable[..., Opened]]:
    """``visit(path, width=1280, flags=..., **context)`` opens a file from disk."""
    contexts = []

    def go(
        path: Path, *, width: int = 1280, flags: tuple[str, ...] = SOFTWARE_GL, anchor: str = "", **context
    ) -> Opened:
        contexts.append(browsers(flags).new_context(viewport={"width": width, "height": 900}, **context))
        opened = Opened(contexts[-1].new_page())
        opened.page.goto(path.resolve().as_uri() + anchor)
        return opened

    yield go
    for context in contexts:
        context.close()
