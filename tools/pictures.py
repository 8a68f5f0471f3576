"""Take the pictures of the documentation, and of every state of the web page.

usage: python -m tools.pictures [--states FOLDER] [--report HTML] [--data FOLDER]

It serves an index of the drawn sample, and takes docs/images/page.png of its page. `--states` takes
each state of the page, too: light and dark, at three sizes, in Chromium and Firefox, if they are
installed. `--report` takes docs/images/evaluation.png of a report of `python -m worker evaluate`.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from image_search.settings import load_settings
from tests.support.servers import ServiceThread
from tools.browsers import open_browser

expect.set_options(timeout=30_000)
ROOT: Final = Path(__file__).resolve().parents[1]
IMAGES: Final = ROOT / "docs" / "images"
FLOWER: Final = ROOT / "examples" / "flower.png"
SIZES: Final[dict[str, dict[str, int]]] = {
    "desktop": {"width": 1280, "height": 860},
    "tablet": {"width": 820, "height": 1180},
    "phone": {"width": 390, "height": 844},
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.pictures",
        description="Take the pictures of the documentation, and of every state of the web page.",
    )
    parser.add_argument("--states", type=Path, help="folder for pictures of every state")
    parser.add_argument("--report", type=Path, help="report of `python -m worker evaluate`")
    parser.add_argument("--data", type=Path, help="folder that keeps the index for the next time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as data, sync_playwright() as playwright:
        chromium = open_browser(playwright, "chromium")
        if chromium is None:
            print("error: Chromium is not installed", file=sys.stderr)
            return 1
        if arguments.report:
            page = chromium.new_page(viewport={"width": 1280, "height": 865})
            page.goto(arguments.report.resolve().as_uri())
            write(page, IMAGES / "evaluation.png")
        with served(arguments.data or Path(data)) as url:
            page = chromium.new_page(viewport={"width": 1200, "height": 770})
            page.goto(url)
            search(page)
            write(page, IMAGES / "page.png")
            chromium.close()
            if arguments.states:
                arguments.states.mkdir(parents=True, exist_ok=True)
                for name in ("chromium", "firefox"):
                    for scheme in ("light", "dark"):
                        browser = open_browser(playwright, name, dark=scheme == "dark")
                        if browser is None:
                            print(f"{name} is not installed: no pictures of it")
                            continue
                        take_states(browser, name, scheme, url, arguments.states)
                        browser.close()
    return 0


def write(page: Page, path: Path) -> None:
    """Take a picture with a palette: half as large."""
    with Image.open(io.BytesIO(page.screenshot())) as taken:
        image = taken.convert("RGB")
    # Pillow dithers only to a palette that is given.
    image.quantize(palette=image.quantize()).save(path, optimize=True)


@contextmanager
def served(data: Path) -> Iterator[str]:
    """The address of a service with an index of the drawn sample in this folder."""
    settings = load_settings(data_dir=data)
    environment = {**os.environ, "IMAGE_SEARCH_DATA_DIR": str(data)}
    command = [sys.executable, "-m", "worker", "ingest", "sample"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)  # noqa: S603
    with ServiceThread(settings, seconds_to_end=1) as service:
        service.wait_until_ready()
        yield f"{service.url}/"


def take_states(
    browser: Browser,
    name: str,
    scheme: str,
    url: str,
    folder: Path,
    sizes: Sequence[str] = tuple(SIZES),
) -> None:
    """Take each state at each size, as `chromium-light-phone-start.png`."""
    for size in sizes:
        touch: dict[str, Any] = {"is_mobile": True, "has_touch": True}
        emulated: dict[str, Any] = {"color_scheme": scheme, **(touch if size != "desktop" else {})}
        context = browser.new_context(
            viewport=SIZES[size],  # type: ignore[arg-type]
            reduced_motion="reduce",
            **(emulated if name == "chromium" else {}),
        )
        for state, lead in STATES.items():
            page = context.new_page()
            page.goto(url)
            expect(page.locator("#some img").first).to_be_visible()
            lead(page)
            page.wait_for_timeout(300)  # until what moves has come to rest
            page.screenshot(path=folder / f"{name}-{scheme}-{size}-{state}.png")
            page.close()
        context.close()


# --- the states of the page, from where one begins ------------------------------------------------


def search(page: Page, file: Path = FLOWER) -> None:
    page.set_input_files("#file", file)
    settle(page)


def settle(page: Page) -> None:
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#matches .match").first).to_be_visible()


def go(page: Page, fragment: str) -> None:
    page.evaluate("fragment => { location.hash = fragment }", fragment)


def nothing(page: Page) -> None:
    """As it is opened."""


def recent(page: Page) -> None:
    for name in ("flower", "boat", "castle"):
        search(page, ROOT / "examples" / f"{name}.png")
    page.locator("#home").click()
    expect(page.locator("#recent img")).to_have_count(3)


def about_the_index(page: Page) -> None:
    page.locator("#index summary").click()


def end(page: Page) -> None:
    search(page)
    while not page.locator("#matches-end").is_visible():
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(100)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")


def options(page: Page) -> None:
    search(page)
    page.locator("#options").evaluate("it => { it.open = true }")
    page.locator("#labels label").first.click()
    settle(page)
    page.locator("#options").scroll_into_view_if_needed()


def examples(page: Page) -> None:
    search(page)
    page.get_by_role("button", name="as a positive example").nth(1).click()
    settle(page)
    page.get_by_role("button", name="as a negative example").nth(2).click()
    settle(page)
    expect(page.locator("#negative img")).to_be_visible()


def selected(page: Page) -> None:
    search(page)
    for button in page.locator("button.select").all()[:3]:
        button.evaluate("it => it.click()")


def part(page: Page) -> None:
    search(page)
    page.get_by_role("button", name="Part of it").click()


def large(page: Page) -> None:
    health = page.evaluate("fetch('health').then(answer => answer.json())")
    page.route("**/health", lambda route: route.fulfill(json={**health, "originals": True}))
    page.route("**/originals/**", lambda route: route.fulfill(path=FLOWER))
    page.reload()
    expect(page.locator("body.originals")).to_be_attached()
    search(page)
    page.locator("button.view").first.evaluate("it => it.click()")


def unfamiliar(page: Page) -> None:
    search(page)
    page.evaluate("location.hash += '&familiar=false'")
    expect(page.locator("#unfamiliar")).to_be_visible()


def no_match(page: Page) -> None:
    go(page, "id=sample-flower-000&label=flowr")
    expect(page.locator("#meant")).to_be_visible()


def compare(page: Page) -> None:
    go(page, "compare")


def compared(page: Page) -> None:
    go(page, "compare&a.id=sample-flower-000&b.id=sample-flower-001")
    expect(page.locator("#verdict")).to_be_visible()


def browse(page: Page) -> None:
    go(page, "browse&label=castle&label=fish")
    expect(page.locator("#images img").first).to_be_visible()


def browse_selected(page: Page) -> None:
    browse(page)
    for button in page.locator("#images button.select").all()[:2]:
        button.evaluate("it => it.click()")


def browse_nothing(page: Page) -> None:
    go(page, "browse&words=nothing")
    expect(page.locator("#browse-none")).to_be_visible()


def refused(page: Page) -> None:
    picture = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"}
    page.set_input_files("#file", picture)  # type: ignore[arg-type]
    expect(page.locator("#notice")).to_be_visible()


def key(page: Page) -> None:
    problem = {"code": "unauthorized", "detail": "a key is needed"}
    page.route("**/query", lambda route: route.fulfill(status=401, json=problem))
    go(page, "id=sample-flower-000")
    expect(page.locator("#key-form")).to_be_visible()


def offline(page: Page) -> None:
    page.route("**/query", lambda route: route.abort())
    page.route("**/health", lambda route: route.abort())
    go(page, "id=sample-flower-000")
    expect(page.locator("#notice")).to_be_visible()


STATES: Final[dict[str, Callable[[Page], None]]] = {
    "start": nothing,
    "found": search,
    "recent": recent,
    "index": about_the_index,
    "end": end,
    "options": options,
    "examples": examples,
    "selected": selected,
    "part": part,
    "large": large,
    "unfamiliar": unfamiliar,
    "no-match": no_match,
    "compare": compare,
    "compared": compared,
    "browse": browse,
    "browse-nothing": browse_nothing,
    "browse-selected": browse_selected,
    "refused": refused,
    "key": key,
    "offline": offline,
}


if __name__ == "__main__":
    sys.exit(main())
