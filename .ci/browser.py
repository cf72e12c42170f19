"""Check the pages in a real browser: Debian's Chromium, headless, wide and narrow, in light and dark."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from checks import MNIST, SEARCHED, fork
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
EXPERIMENT = "stories_era"
LANGUAGE = (  # tiny sizes
    f"experiment={EXPERIMENT}", "trainer=smoke", "dataset.stories=100", "dataset.test_stories=40",
    "dataset.length=48", "model.layers=2", "model.expand=[0,1]",
    "model.width=16", "model.heads=2",
    "finetune.documents=[4]", "relearn.documents=[2,4]", "relearn.samples=1", "completions.tokens=20",
)  # fmt: skip


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Make the pages of a smoke run, a language model's run, their comparisons, token weights, and a search."""
    cwd = tmp_path_factory.mktemp("pages")
    small = ("search=mnist_split", *SEARCHED, *MNIST, "search.random=0", "search.final.best=0")
    commands = [("gradroute-run", "trainer=smoke", *MNIST), ("gradroute-search", *small)]
    commands += [(name, *LANGUAGE) for name in ("gradroute-run", "gradroute-tokens")]
    for name in ("mnist_split", EXPERIMENT):
        commands.append(("gradroute-compare", f"outputs/{name}", "--out", f"comparison/{name}"))
    for command in commands:
        fork(*command, cwd=cwd, rendered=True)
    return [path for pattern in ("outputs/**/*.html", "comparison/*/*.html") for path in sorted(cwd.glob(pattern))]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


CUT_OFF = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BAD_IMAGES = """[...document.images].filter(
    i => !i.complete || i.naturalWidth === 0 || i.getBoundingClientRect().right > innerWidth).length"""
LAST_COLUMN = """[...[...document.querySelectorAll("tbody")].at(-1).rows].map(
    row => row.lastElementChild.dataset.value ?? row.lastElementChild.textContent)"""


def watch(page: Page) -> list[str]:
    """Return a list that collects a page's faults: console messages, exceptions, and requests to a network."""
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else faults.append(r.url))
    return faults


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_pages_show_whole_sort_and_log_no_error(
    browser: Browser, pages: list[Path], width: int, scheme: Literal["light", "dark"]
) -> None:
    assert len(pages) == 6
    for path in pages:
        assert path.stat().st_size < 2_000_000
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        faults = watch(page)
        page.goto(path.as_uri())
        assert page.evaluate(CUT_OFF) <= 0 and page.evaluate(BAD_IMAGES) == 0
        header = page.locator("th button").last
        header.click()
        first = page.evaluate(LAST_COLUMN)
        assert page.locator("th[aria-sort=ascending]").count() == 1
        header.click()
        assert sorted(page.evaluate(LAST_COLUMN)) == sorted(first)
        assert (page.evaluate(LAST_COLUMN)[0], first[0]) == (first[-1], page.evaluate(LAST_COLUMN)[-1])
        if os.environ.get("SCREENSHOTS"):
            page.screenshot(
                path=f"{os.environ['SCREENSHOTS']}/{path.parent.name}_{path.stem}_{width}_{scheme}.png", full_page=True
            )
        assert faults == []
        page.close()
