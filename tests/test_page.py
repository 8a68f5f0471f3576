"""The web page in real browsers: Debian's Chromium and Firefox, driven by Playwright."""

import base64
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Locator,
    Page,
    Route,
    expect,
    sync_playwright,
)

from image_search import videos
from image_search.calibration import PAIR_LEVELS, Calibration, PairScores
from image_search.embedding import Embedder
from image_search.index import Record, VectorIndex
from image_search.manifest import Manifest
from image_search.moments import frame_id
from image_search.settings import Settings, load_settings
from image_search.stores import create_index
from image_search.values import DIMENSION, Embeddings, Metadata
from service.app import create_app
from tests.support import ROOT
from tests.support.images import KINDS, PER_KIND, QUERY, draw, encode
from tests.support.indexes import fill
from tests.support.pinecone import API_KEY, PineconeEmulator
from tests.support.servers import ServiceThread, assert_problem
from tests.support.videos import write_video
from tests.support.waiting import wait_until
from tools import pictures
from tools.browsers import open_browser

pytestmark = pytest.mark.slow

BOTH = pytest.mark.parametrize(
    "browser", ["chromium", pytest.param("firefox", marks=pytest.mark.long)], indirect=True
)
TOP_K = 24
expect.set_options(timeout=30_000)
KEY = "open sesame"
OTHER = draw(KINDS[2], 999)
NASTY = "<img src=x onerror=alert(1)>"
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def module_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings(data_dir=tmp_path_factory.mktemp("page"), max_upload_bytes=2_000_000)


@pytest.fixture(scope="module")
def index(module_settings: Settings, embedder: Embedder) -> VectorIndex:
    return fill(module_settings, embedder)


@pytest.fixture(scope="module")
def url(module_settings: Settings, index: VectorIndex) -> Iterator[str]:
    assert index.count() == len(KINDS) * PER_KIND
    with ServiceThread(module_settings, seconds_to_end=1) as service:
        service.wait_until_ready()
        yield f"{service.url}/"


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """Chromium, or Firefox in tests that are run in BOTH.

    These need nothing that Firefox's driver lacks, such as touch, a dark scheme or the clipboard.
    """
    name = getattr(request, "param", "chromium")
    with sync_playwright() as playwright:
        browser = open_browser(playwright, name)
        if browser is None:
            package = {"firefox": "firefox-esr"}.get(name, name)
            pytest.skip(
                f"no {name}: the page was not tested (on Debian: apt-get install {package})"
            )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages, each in a context of its own; afterwards, none may have told of an error.

    The content security policy's violations are such errors.
    """
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def open_(address: str, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        for page in context.pages:
            page.unroute_all(behavior="ignoreErrors")  # what is still asked for is not needed
        context.unroute_all(behavior="ignoreErrors")
        context.close()
    # This one is Chromium's own, for each answer of status 400 and more.
    assert [error for error in errors if not error.startswith("Failed to load resource")] == []


@pytest.fixture
def page(open_page: Callable[..., Page], url: str) -> Page:
    return open_page(url)


def best(index: VectorIndex, embedding: NDArray[np.floating], top_k: int = TOP_K) -> list[str]:
    return [match.id for match in index.query(embedding.astype(np.float32), top_k)]


def unit(embedding: Embeddings) -> Embeddings:
    return embedding / np.float32(np.linalg.norm(embedding))


def shown(page: Page, count: int = TOP_K) -> list[str]:
    """The ids of the matches, once there are as many as that."""
    expect(page.locator("#matches .match")).to_have_count(count)
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    return page.locator("#matches .id").all_text_contents()


def upload(
    page: Page, content: bytes, name: str = "cat.png", media_type: str = "image/png"
) -> None:
    page.set_input_files("#file", {"name": name, "mimeType": media_type, "buffer": content})


def is_loaded(image: Locator) -> bool:
    return bool(
        image.evaluate("async image => { await image.decode(); return image.naturalWidth > 0 }")
    )


# --- handing a picture over -----------------------------------------------------------------------


@BOTH
def test_an_upload_is_shown_beside_its_matches(
    page: Page, index: VectorIndex, embedder: Embedder
) -> None:
    expect(page.locator("#index-summary")).to_have_text(f"{len(KINDS) * PER_KIND} images")
    upload(page, encode(QUERY))
    expected = index.query(embedder.embed([embedder.pixels(QUERY)])[0], TOP_K)
    assert shown(page) == [match.id for match in expected]
    first = page.locator(".match").first
    expect(first.locator("strong")).to_have_text(str(expected[0].label))
    expect(first.locator(".score")).to_have_text(f"score {expected[0].score:.3f}")
    assert is_loaded(first.locator("img"))
    assert is_loaded(page.locator("#query-picture"))
    expect(page.locator("#start")).to_be_hidden()
    expect(page.locator("#announcement")).to_contain_text(f"{TOP_K} matches. Best: ")


def test_choosing_opens_the_browser_s_own_dialog(page: Page) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files({"name": "a.png", "mimeType": "image/png", "buffer": encode(QUERY)})
    shown(page)
    with page.expect_file_chooser():
        page.get_by_role("button", name="Another picture").click()


def test_a_phone_offers_its_camera(open_page: Callable[..., Page], url: str) -> None:
    page = open_page(url, viewport=PHONE, is_mobile=True, has_touch=True)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Take a photo").tap()
    assert chooser.value.element.get_attribute("capture") == "environment"


def test_the_header_has_room_for_its_links_on_a_phone(
    open_page: Callable[..., Page], url: str
) -> None:
    page = open_page(url, viewport=PHONE, is_mobile=True, has_touch=True)
    for width in (PHONE["width"], 320):
        page.set_viewport_size({"width": width, "height": 640})
        edges = []
        for name in ("#home", "#index summary", "#browse-link"):
            box = page.locator(name).bounding_box()
            assert box is not None
            edges += [box["x"], box["x"] + box["width"]]
        assert edges == sorted(edges)
        assert edges[-1] <= width
    expect(page.locator(".ways").get_by_role("link", name="API")).to_be_visible()
    page.locator("#browse-link").tap()
    expect(page.get_by_role("heading", name="Browse")).to_be_visible()


def test_a_picture_can_be_pasted(page: Page, index: VectorIndex, embedder: Embedder) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async base64 => {
            const bytes = Uint8Array.from(atob(base64), char => char.charCodeAt(0));
            const picture = new Blob([bytes], { type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": picture })]);
        }""",
        base64.b64encode(encode(QUERY)).decode(),
    )
    page.keyboard.press("Control+V")
    assert shown(page) == best(index, embedder.embed([embedder.pixels(QUERY)])[0])


DROP = """([type, base64]) => {
    const dataTransfer = new DataTransfer();
    if (base64) {
        const bytes = Uint8Array.from(atob(base64), char => char.charCodeAt(0));
        dataTransfer.items.add(new File([bytes], "cat.png", { type: "image/png" }));
    } else {
        dataTransfer.setData("text/uri-list", "http://example.org/cat.png");
    }
    const event = new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true });
    document.querySelector("main").dispatchEvent(event);
}"""


@BOTH
def test_a_picture_can_be_dropped_anywhere(
    page: Page, index: VectorIndex, embedder: Embedder
) -> None:
    content = base64.b64encode(encode(QUERY)).decode()
    page.evaluate(DROP, ["dragenter", content])
    expect(page.locator("#overlay")).to_be_visible()
    page.evaluate(DROP, ["drop", content])
    expect(page.locator("#overlay")).to_be_hidden()
    assert shown(page) == best(index, embedder.embed([embedder.pixels(QUERY)])[0])


def test_what_cannot_be_fetched_is_refused_in_words(page: Page) -> None:
    page.evaluate(DROP, ["drop", ""])
    expect(page.get_by_role("alert")).to_contain_text("save it and drop the file")


def test_who_has_no_picture_at_hand_takes_one_of_the_page(page: Page, index: VectorIndex) -> None:
    page.get_by_role("button", name="boat").click()
    shown(page)
    page.go_back()
    expect(page.locator("#some a")).to_have_count(10)
    kinds = page.locator("#some a").evaluate_all("all => all.map(a => a.title.split(',')[0])")
    assert set(kinds) == set(KINDS)
    id_ = str(page.locator("#some a").first.get_attribute("title")).partition(", ")[2]
    page.locator("#some a").first.click()
    embedding = index.fetch([id_])[id_].embedding
    assert [id_, *shown(page)] == best(index, embedding, TOP_K + 1)


@BOTH
def test_a_photo_is_turned_upright_and_made_small_before_it_is_sent(
    page: Page, index: VectorIndex, embedder: Embedder
) -> None:
    size = (1650, 2250)
    upright = QUERY.resize(size, Image.Resampling.BICUBIC)
    grain = np.random.default_rng(0).integers(-25, 26, (*size[::-1], 3))
    noisy = Image.fromarray((np.asarray(upright) + grain).clip(0, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    photo = encode(noisy.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=97, exif=exif)
    assert len(photo) > 2_000_000  # more than the service takes
    with page.expect_request("**/embeddings") as request:
        upload(page, photo, "photo.jpg", "image/jpeg")
    assert int(request.value.all_headers()["content-length"]) < 1_000_000
    found = shown(page)
    small = noisy.resize((751, 1024), Image.Resampling.LANCZOS)
    assert found[0] == best(index, embedder.embed([embedder.pixels(small)])[0])[0]
    picture = page.locator("#query-picture")
    assert is_loaded(picture)
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [751, 1024]


def part(left: float, top: float, width: float, height: float) -> Image.Image:
    """A part of QUERY, by shares of its sides."""
    across, down = QUERY.size
    right, bottom = left + width, top + height
    return QUERY.crop(
        (round(left * across), round(top * down), round(right * across), round(bottom * down))
    )


def cropped(page: Page) -> tuple[float, ...]:
    """Where the frame is, as shares of the picture."""
    style = page.locator("#crop-frame").evaluate(
        "it => ['left', 'top', 'width', 'height'].map(name => parseFloat(it.style[name]) / 100)"
    )
    return tuple(round(share, 4) for share in style)


def test_a_part_is_chosen_by_dragging_a_frame(
    page: Page, index: VectorIndex, embedder: Embedder
) -> None:
    upload(page, encode(QUERY))
    whole = shown(page)
    page.get_by_role("button", name="Part of it").click()
    area = page.locator("#crop-area").bounding_box()
    assert area is not None

    def drag(*places: tuple[float, float]) -> None:
        for number, (x, y) in enumerate(places):
            page.mouse.move(area["x"] + x * area["width"], area["y"] + y * area["height"])
            if number == 0:
                page.mouse.down()
        page.mouse.up()

    drag((0.1, 0.9), (0.3, 0.2), (0.5, 0.4))
    assert cropped(page) == pytest.approx((0.1, 0.4, 0.4, 0.5), abs=0.01)
    drag((0.3, 0.6), (0.4, 0.5))  # within: it is moved
    assert cropped(page) == pytest.approx((0.2, 0.3, 0.4, 0.5), abs=0.01)
    drag((0.6, 0.8), (0.7, 2))  # a corner, out of the picture
    assert cropped(page) == pytest.approx((0.2, 0.3, 0.5, 0.7), abs=0.01)
    drag((0.9, 0.1))  # a click
    assert cropped(page) == pytest.approx((0.2, 0.3, 0.5, 0.7), abs=0.01)
    page.get_by_role("button", name="Search with this part").click()
    picture = page.locator("#query-picture")
    expect(picture).to_have_attribute("src", re.compile("^blob:"))
    wait_until(lambda: picture.evaluate("it => it.naturalWidth") == 48)
    found = shown(page)
    assert found != whole
    expected = best(index, embedder.embed([embedder.pixels(part(0.2, 0.3, 0.5, 0.7))])[0])
    assert len(set(found) & set(expected)) > TOP_K // 2  # the browser's pixels are compressed
    page.get_by_role("button", name="Part of it").click()  # of the whole picture again
    wait_until(lambda: page.locator("#crop-picture").evaluate("it => it.naturalWidth") == 96)
    page.get_by_role("button", name="Cancel").click()
    assert shown(page) == found


def test_a_part_is_chosen_by_touch_and_by_keys(open_page: Callable[..., Page], url: str) -> None:
    page = open_page(f"{url}#id={KINDS[0]}-00", viewport=PHONE, is_mobile=True, has_touch=True)
    shown(page)
    page.get_by_role("button", name="Part of it").tap()
    expect(page.locator("#crop-frame")).to_be_focused()
    area = page.locator("#crop-area").bounding_box()
    assert area is not None
    touch = page.context.new_cdp_session(page)
    for kind, x, y in [("touchStart", 0.1, 0.1), ("touchMove", 0.3, 0.3), ("touchMove", 0.5, 0.6)]:
        point = {"x": area["x"] + x * area["width"], "y": area["y"] + y * area["height"]}
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert cropped(page) == pytest.approx((0.1, 0.1, 0.4, 0.5), abs=0.01)
    page.get_by_role("button", name="Whole picture").click()
    assert cropped(page) == (0, 0, 1, 1)
    frame = page.get_by_role("button", name="Frame")
    for key in ("Shift+ArrowLeft", "Shift+ArrowUp", "Shift+ArrowUp", "ArrowRight", "ArrowDown"):
        frame.press(key)
    assert cropped(page) == (0.02, 0.02, 0.98, 0.96)
    expect(page.locator("#crop-size")).to_have_text(
        re.compile("^98 . 96 % of the picture, 2 % from the left, 2 % from the top$")
    )
    frame.press("ArrowRight")  # it stops at the edge
    assert cropped(page) == (0.02, 0.02, 0.98, 0.96)
    frame.press("Enter")
    expect(page.locator("#crop")).to_be_hidden()
    expect(page.locator("#query-label")).to_have_text("Your picture")
    shown(page)
    page.get_by_role("button", name="Part of it").tap()
    page.keyboard.press("Escape")
    expect(page.locator("#crop")).to_be_hidden()


def test_a_picture_of_noise_is_shown_too(open_page: Callable[..., Page], page: Page) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    upload(page, encode(Image.fromarray(noise)))
    shown(page)
    assert is_loaded(page.locator("#query-picture"))
    expect(page.get_by_role("button", name="Part of it")).to_be_visible()
    assert len(page.url) < 8000
    other = open_page(page.url)
    shown(other)
    assert is_loaded(other.locator("#query-picture"))


# --- from one search to the next ------------------------------------------------------------------


@BOTH
def test_more_like_a_match_and_back(page: Page, index: VectorIndex) -> None:
    upload(page, encode(QUERY))
    first = shown(page)
    address = page.url
    page.locator(".picture").nth(2).click()
    expect(page.locator("#query-id")).to_have_text(first[2])
    second = shown(page)
    assert [first[2], *second] == best(
        index, index.fetch([first[2]])[first[2]].embedding, TOP_K + 1
    )
    expect(page.locator("#results-title")).to_be_focused()
    page.go_back()
    assert page.url == address
    expect(page.locator("#query-label")).to_have_text("Your picture")
    assert shown(page) == first
    page.go_forward()
    expect(page.locator("#query-id")).to_have_text(first[2])
    page.get_by_role("button", name="Back").click()
    expect(page.locator("#query-label")).to_have_text("Your picture")
    page.get_by_role("button", name="Back").click()
    expect(page.locator("#start")).to_be_visible()
    expect(page.locator("#found")).to_be_hidden()


@BOTH
def test_more_matches_come_by_scrolling(
    open_page: Callable[..., Page], url: str, index: VectorIndex
) -> None:
    query = f"{KINDS[0]}-00"
    page = open_page(f"{url}#id={query}")
    expected = best(index, index.fetch([query])[query].embedding, len(KINDS) * PER_KIND)[1:]
    assert shown(page) == expected[:TOP_K]
    expect(page.get_by_role("button", name="Show more matches")).to_be_visible()
    page.mouse.move(700, 500)
    page.mouse.wheel(0, 4000)
    assert shown(page, len(expected)) == expected
    expect(page.locator("#announcement")).to_have_text(
        f"{len(expected) - TOP_K} more, {len(expected)} matches"
    )
    expect(page.get_by_role("heading", name=f"{len(expected)} matches")).to_be_visible()
    expect(page.locator("#more-matches")).to_be_hidden()
    expect(page.get_by_role("slider", name="How many")).to_have_value(f"{TOP_K}")
    # Back leads to the same place, among as many matches.
    page.locator(".picture").nth(40).scroll_into_view_if_needed()
    page.locator(".picture").nth(40).click()
    expect(page.locator("#query-id")).to_have_text(expected[40])
    shown(page)
    assert page.evaluate("scrollY") == 0
    page.get_by_role("button", name="Back").click()
    expect(page.locator("#query-id")).to_have_text(query)
    assert shown(page, len(expected)) == expected
    expect(page.locator(".picture").nth(40)).to_be_in_viewport()


@pytest.mark.long
def test_more_matches_come_by_the_keyboard_up_to_a_hundred(
    open_page: Callable[..., Page], photos_url: str
) -> None:
    page = open_page(f"{photos_url}#id=trip/%25C3%25A9t%25C3%25A9-000.jpg&top_k=5")
    first = shown(page, 5)
    more = page.get_by_role("button", name="Show more matches")
    more.press("Enter")
    assert shown(page, 43)[:5] == first
    expect(page.locator(".picture").nth(5)).to_be_focused()  # the first that is new
    page.route("**/query", lambda route: route.abort())
    more.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("More matches could not be loaded")
    page.unroute("**/query")
    shown(page, 81)  # tried again by itself
    expect(page.get_by_role("alert")).to_be_hidden()
    page.mouse.move(700, 500)
    page.mouse.wheel(0, 9000)
    assert len(set(shown(page, 100))) == 100
    expect(more).to_be_hidden()
    expect(page.locator("#matches-end")).to_contain_text("the 100 best matches")
    assert page.evaluate("location.hash").endswith("top_k=5")
    page.reload()
    shown(page, 100)


@BOTH
def test_what_was_searched_for_is_kept_in_this_browser(
    open_page: Callable[..., Page], url: str
) -> None:
    page = open_page(url)
    expect(page.locator("#recent-section")).to_be_hidden()
    upload(page, encode(QUERY))
    found = shown(page)
    page.get_by_role("checkbox", name="near-duplicates").check()
    shown(page)
    page.locator(".picture").nth(1).click()
    expect(page.locator("#query-id")).to_have_text(found[1])
    shown(page)
    page.get_by_role("link", name="Image search").click()
    links = page.locator("#recent a")
    expect(links).to_have_count(2)  # of each picture, the last search
    label = found[1].rpartition("-")[0]
    expect(links.first).to_have_attribute("aria-label", re.compile(f"^{label}, searched for on"))
    expect(links.last).to_have_attribute("aria-label", re.compile("^Your picture, searched for on"))
    for picture in links.locator("img").all():
        assert is_loaded(picture)

    # It is this browser's alone: nothing of it is asked for or sent.
    again = page.context.new_page()
    requests: list[str] = []
    again.on("request", lambda request: requests.append(f"{request.url} {request.post_data}"))
    again.goto(url)
    expect(again.locator("#recent a")).to_have_count(2)
    expect(again.locator("#some a")).to_have_count(10)
    assert not [sent for sent in requests if found[1] in sent]
    other = open_page(url)
    expect(other.locator("#some a")).to_have_count(10)
    expect(other.locator("#recent-section")).to_be_hidden()

    links.last.click()
    expect(page.get_by_role("checkbox", name="near-duplicates")).to_be_checked()
    assert shown(page) == found
    page.get_by_role("link", name="Image search").click()
    expect(links.first).to_have_attribute("aria-label", re.compile("^Your picture"))
    page.get_by_role("button", name="Clear the list").click()
    expect(page.locator("#recent-section")).to_be_hidden()
    expect(again.locator("#recent-section")).to_be_hidden()
    page.reload()
    expect(page.locator("#some a")).to_have_count(10)
    expect(page.locator("#recent-section")).to_be_hidden()


REFUSE = """for (const name of ["localStorage", "sessionStorage"]) {
    Object.defineProperty(window, name, {
        get() { throw new DOMException("no", "SecurityError"); },
    });
}"""


@pytest.mark.parametrize(
    "kept",
    [
        None,
        "{",
        '"a"',
        '[null, {"address": "javascript:0", "name": "a", "picture": null, "at": 0}]',
        '[{"address": "#embedding=AAAA", "name": "a", "picture": null, "at": 0}]',
    ],
)
def test_a_browser_that_keeps_nothing_is_enough(
    open_page: Callable[..., Page], url: str, kept: str | None
) -> None:
    page = open_page("about:blank")
    damage = f"localStorage.setItem('image-search recent /', {json.dumps(kept)})"
    page.add_init_script(REFUSE if kept is None else damage)
    page.goto(url)
    expect(page.locator("#some a")).to_have_count(10)
    expect(page.locator("#recent-section")).to_be_hidden()
    page.get_by_role("button", name="boat").click()
    shown(page)
    page.get_by_role("link", name="Image search").click()
    expect(page.locator("#recent a")).to_have_count(1)


def test_the_page_is_the_same_on_pinecone(
    open_page: Callable[..., Page],
    index: VectorIndex,
    embedder: Embedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PINECONE_API_KEY", API_KEY)
    with PineconeEmulator() as pinecone:
        settings = load_settings(store="pinecone", pinecone_host=pinecone.host)
        fill(settings, embedder).close()
        with ServiceThread(settings, seconds_to_end=1) as service:
            service.wait_until_ready()
            page = open_page(f"{service.url}/")
            upload(page, encode(QUERY))
            first = shown(page)
            assert first == best(index, embedder.embed([embedder.pixels(QUERY)])[0])
            page.locator("#labels label", has_text=KINDS[2]).click()
            assert all(KINDS[2] in id_ for id_ in shown(page, PER_KIND))
            page.locator("#matches .picture").first.click()
            expect(page.locator("#query-label")).to_have_text(KINDS[2])
            page.goto(f"{service.url}/#browse&label={KINDS[1]}")
            expect(page.locator("#images .match")).to_have_count(PER_KIND)
            expect(page.locator("#words-option")).to_be_hidden()
            expect(page.locator("#sort-option")).to_be_hidden()
            expect(page.locator("#browse-from")).to_be_visible()


# --- browsing -------------------------------------------------------------------------------------

DAY = 86_400
PHOTOS = 150


@pytest.fixture(scope="module")
def photos_url(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with photos of 150 days from 2024-01-01 on, of three labels."""
    settings = load_settings(data_dir=tmp_path_factory.mktemp("photos"))
    manifest = Manifest.new(embedder.model, settings.metric, settings.namespace)
    index = create_index(settings, manifest)
    rows = np.random.default_rng(0).random((PHOTOS, DIMENSION), np.float32)
    start = 1704067200  # 2024-01-01
    index.upsert(
        [
            Record(
                f"trip/%C3%A9t%C3%A9-{n:03d}.jpg",
                row,
                ["beach", "forest", None][n % 3],
                {"taken": start + n * DAY + 3600, "path": f"été-{n:03d}.jpg", "note": NASTY},
                encode(draw(KINDS[n % 4], n % 8).resize((64, 48)), "JPEG"),
            )
            for n, row in enumerate(rows)
        ]
    )
    with ServiceThread(settings, seconds_to_end=1) as service:
        service.wait_until_ready()
        yield f"{service.url}/"


def browsed(page: Page, numbers: list[int]) -> None:
    """Wait until these photos are shown, in this order."""
    expected = [f"trip/été-{n:03d}.jpg" for n in numbers]
    expect(page.locator("#images .id bdi")).to_have_text(expected)


@BOTH
def test_the_index_is_browsed_without_a_picture(
    open_page: Callable[..., Page], photos_url: str
) -> None:
    page = open_page(photos_url)
    page.get_by_role("link", name="Browse the index").click()
    expect(page.locator("#start")).to_be_hidden()
    assert page.url.endswith("#browse")
    expect(page.locator("#browse-title")).to_be_focused()
    expect(page.locator("#browse-labels label")).to_have_text(["beach 50", "forest 50"])
    expect(page.locator("#browse-count")).to_have_text(f"60 of {PHOTOS} images")
    for _ in range(20):
        page.mouse.wheel(0, 4000)
        if page.locator("#images .match").count() == PHOTOS:
            break
        page.wait_for_timeout(100)
    browsed(page, list(range(PHOTOS)))
    expect(page.locator("#browse-count")).to_have_text(f"{PHOTOS} images")
    expect(page.locator("#more")).to_be_hidden()

    page.get_by_label("Order").select_option("Newest photos first")
    page.get_by_label("Taken from").fill("2024-01-10")
    page.get_by_label("to", exact=True).fill("2024-01-20")
    browsed(page, list(range(19, 8, -1)))
    page.locator("#browse-labels label", has_text="forest").click()
    browsed(page, [19, 16, 13, 10])
    address = page.url
    tile = page.locator("#images .match").nth(1)
    expect(tile.locator("strong")).to_have_text("forest")
    expect(tile.locator("time")).to_have_text("2024-01-17")
    expect(tile.locator(".id")).to_have_attribute(
        "title", re.compile(r"\ntaken: 2024-01-17 01:00$")
    )
    assert is_loaded(tile.locator("img"))
    tile.locator("a").click()
    expect(page.locator("#query-id")).to_have_text("trip/été-016.jpg")
    expect(page.locator("#browse")).to_be_hidden()
    page.go_back()
    assert page.url == address
    browsed(page, [19, 16, 13, 10])
    page.go_back()
    browsed(page, list(range(19, 8, -1)))

    page.goto(address)
    page.reload()
    browsed(page, [19, 16, 13, 10])
    page.get_by_label("Words").fill("ETE-01")
    browsed(page, [19, 16, 13, 10])
    page.get_by_label("Words").fill("no such")
    expect(page.locator("#browse-none")).to_be_visible()
    page.get_by_role("button", name="Reset the filters").click()
    expect(page.get_by_label("Words")).to_have_value("")
    browsed(page, list(range(60)))
    page.get_by_label("Words").fill("ETE-14")
    browsed(page, list(range(140, PHOTOS)))
    assert page.url.endswith("#browse&words=ETE-14")
    page.get_by_role("link", name="Image search").click()
    expect(page.locator("#start")).to_be_visible()
    expect(page.locator("#browse")).to_be_hidden()


def test_images_are_selected_while_browsing(
    open_page: Callable[..., Page], photos_url: str
) -> None:
    page = open_page(f"{photos_url}#browse&label=beach")
    page.locator("#images .match").nth(1).hover()
    page.get_by_role("button", name="Select beach, trip/été-003.jpg").click()
    page.locator("#browse-labels label", has_text="beach").click()
    expect(page.locator("#images .match")).to_have_count(60)
    chosen = page.get_by_role("button", name="Select beach, trip/été-003.jpg")
    expect(chosen).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Select trip/été-002.jpg").click()
    bar = page.get_by_role("region", name="Selected images")
    expect(bar).to_contain_text("2 selected")
    with page.expect_download() as download:
        bar.get_by_role("button", name="Download as CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text(), newline="")))
    assert [(row["name"], row["label"], row["score"]) for row in rows] == [
        ("trip/été-003.jpg", "beach", ""),
        ("trip/été-002.jpg", "", ""),
    ]
    page.get_by_role("link", name="Image search").click()
    expect(bar).to_be_hidden()
    page.go_back()
    bar.get_by_role("button", name="Compare").click()
    expect(page.locator("#a-picture")).to_have_attribute("title", "trip/été-003.jpg")
    expect(bar).to_be_hidden()
    page.go_back()
    bar.get_by_role("button", name="Clear").click()
    expect(page.locator("#browse-title")).to_be_focused()
    expect(chosen).to_have_attribute("aria-pressed", "false")


def test_a_listing_that_fails_is_tried_again(
    open_page: Callable[..., Page], photos_url: str
) -> None:
    page = open_page("about:blank")
    away = True

    def answer(route: Route) -> None:
        if away:
            route.abort()
        else:
            route.continue_()

    page.route("**/images?**", answer)
    page.goto(f"{photos_url}#browse&sort=taken&label=beach&from=x")
    expect(page.get_by_role("alert")).to_contain_text("could not be listed")
    away = False
    browsed(page, list(range(0, PHOTOS, 3)))
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_match_opens_in_another_tab_too(page: Page) -> None:
    upload(page, encode(QUERY))
    id_ = shown(page)[1]
    with page.context.expect_page() as other:
        page.locator(".picture").nth(1).click(modifiers=["ControlOrMeta"])
    expect(other.value.locator("#query-id")).to_have_text(id_)
    shown(other.value)


@BOTH
def test_examples_move_the_query(page: Page, index: VectorIndex, embedder: Embedder) -> None:
    upload(page, encode(QUERY))
    first = shown(page)
    liked, disliked = first[4], first[9]
    query = unit(embedder.embed([embedder.pixels(QUERY)])[0])
    plus, minus = (unit(index.fetch([id_])[id_].embedding) for id_ in (liked, disliked))

    page.get_by_role("button", name=f"{liked} as a positive example").click()
    expect(page.locator("#positive button")).to_have_count(1)
    expected = [id_ for id_ in best(index, (query + plus) / 2, TOP_K + 1) if id_ != liked]
    expect(page.locator(".id").first).to_have_text(expected[0])
    assert shown(page) == expected[:TOP_K]

    page.get_by_role("button", name=f"{disliked} as a negative example").click()
    expect(page.locator("#negative button")).to_have_count(1)
    assert is_loaded(page.locator("#negative img"))
    expect(page.locator(f".picture[href*='id={disliked}']")).to_have_count(0)
    moved = (query + plus) / 2 - minus / 2
    expected = [id_ for id_ in best(index, moved, TOP_K + 2) if id_ not in {liked, disliked}]
    assert shown(page) == expected[:TOP_K]

    page.get_by_role("button", name="Remove the positive example").click()
    expect(page.locator("#positive-group")).to_be_hidden()
    page.get_by_role("button", name="Remove the negative example").click()
    expect(page.locator(".id").first).to_have_text(first[0])
    assert shown(page) == first
    page.go_back()
    expect(page.locator("#negative button")).to_have_count(1)


# --- options --------------------------------------------------------------------------------------


def test_labels_and_the_number_of_matches_are_chosen(page: Page) -> None:
    upload(page, encode(QUERY))
    shown(page)
    page.locator("#labels label", has_text=KINDS[2]).click()
    assert all(KINDS[2] in id_ for id_ in shown(page, PER_KIND))
    page.locator("#labels label", has_text=KINDS[0]).click()
    assert {id_.rpartition("-")[0] for id_ in shown(page, TOP_K)} == {KINDS[0], KINDS[2]}
    slider = page.get_by_role("slider", name="How many")
    slider.fill("5")
    shown(page, 5)
    expect(page.locator("#top-k-value")).to_have_text("5")
    slider.press("ArrowRight")
    shown(page, 6)
    expect(slider).to_be_focused()
    page.reload()
    shown(page, 6)
    expect(page.get_by_role("checkbox", name=KINDS[0])).to_be_checked()
    page.go_back()  # a slider that is moved on makes one step
    shown(page, TOP_K)
    expect(slider).to_have_value(f"{TOP_K}")
    expect(page.get_by_role("checkbox", name=KINDS[0])).to_be_checked()
    page.go_back()
    shown(page, PER_KIND)
    expect(page.get_by_role("checkbox", name=KINDS[0])).not_to_be_checked()
    expect(page.get_by_role("checkbox", name=KINDS[2])).to_be_checked()
    page.go_forward()
    expect(page.get_by_role("checkbox", name=KINDS[0])).to_be_checked()
    for _ in range(3):
        page.go_back()
    expect(page.locator("#start")).to_be_visible()


@BOTH
def test_back_brings_the_options_of_a_search_again(page: Page) -> None:
    upload(page, encode(QUERY))
    shown(page)
    # At once: what a slider was set to must not get lost on the way.
    page.evaluate(
        """() => {
            const slider = document.getElementById("top-k");
            slider.value = 7;
            slider.dispatchEvent(new Event("input"));
            document.querySelectorAll(".picture")[1].click();
        }"""
    )
    shown(page, 7)
    page.get_by_role("checkbox", name="near-duplicates").check()
    page.get_by_role("button", name="Back").click()
    expect(page.get_by_role("checkbox", name="near-duplicates")).not_to_be_checked()
    page.get_by_role("button", name="Back").click()
    expect(page.locator("#query-label")).to_have_text("Your picture")
    shown(page, 7)
    page.get_by_role("button", name="Back").click()
    shown(page)
    expect(page.get_by_role("slider", name="How many")).to_have_value(f"{TOP_K}")


def test_options_that_leave_nothing_can_be_taken_back(
    open_page: Callable[..., Page], url: str
) -> None:
    page = open_page(f"{url}#id={KINDS[0]}-00&label=nothing&top_k=7")
    expect(page.locator("#none")).to_contain_text("No image of the index passes these options")
    page.get_by_role("button", name="Reset the options").click()
    shown(page)


def test_confidence_is_shown_and_asked_for_where_there_is_one(page: Page) -> None:
    asked: list[dict[str, Any]] = []

    def with_confidence(route: Route) -> None:
        asked.append(dict(route.request.post_data_json or {}))
        # Without min_confidence: here the answer only has to look as if there were one.
        wanted = {key: value for key, value in asked[-1].items() if key != "min_confidence"}
        answer = route.fetch(post_data=wanted).json()
        for place, match in enumerate(answer["matches"]):
            match["confidence"] = 0.87 if place == 0 else None
        route.fulfill(json=answer)

    page.route("**/query", with_confidence)
    page.goto(f"{page.url}#id={KINDS[0]}-00")
    shown(page)
    expect(page.locator(".percent")).to_have_text("87 %")
    assert page.locator(".confidence").evaluate("bar => bar.style.getPropertyValue('--share')")
    slider = page.get_by_role("slider", name="Confidence")
    expect(slider).to_have_attribute("aria-valuetext", "any")
    slider.fill("0.6")
    expect(slider).to_have_attribute("aria-valuetext", "at least 60 %")
    expect(page).to_have_url(re.compile("min_confidence=0.6"))
    shown(page)
    assert asked[-1]["min_confidence"] == 0.6


def test_a_picture_that_nothing_is_like_is_said_to_be(
    open_page: Callable[..., Page], page: Page
) -> None:
    def confident(route: Route) -> None:
        answer = route.fetch().json()
        for match in answer["matches"]:
            match["confidence"] = 0.9
        route.fulfill(json=answer)

    judgements: list[bool | None] = [None, True, False]

    def judged(route: Route) -> None:
        route.fulfill(json={**route.fetch().json(), "familiar": judgements[0]})

    page.route("**/query", confident)
    page.route("**/embeddings", judged)
    while True:
        upload(page, encode(QUERY))
        first = shown(page)
        unfamiliar = judgements[0] is False
        expect(page.locator("#unfamiliar")).to_be_visible(visible=unfamiliar)
        expect(page.locator(".percent")).to_have_count(0 if unfamiliar else TOP_K)
        if unfamiliar:
            break
        judgements.pop(0)
    words = "Nothing like this is in the index."
    expect(page.locator("#unfamiliar")).to_contain_text(words)
    expect(page.locator("#announcement")).to_contain_text(words)
    other = open_page(page.url)
    shown(other)
    expect(other.locator("#unfamiliar")).to_be_visible()
    # Of several examples it cannot be told, and an image of the index is like itself.
    page.get_by_role("button", name=f"{first[1]} as a positive example").click()
    expect(page.locator("#unfamiliar")).to_be_hidden()
    page.locator(".picture").first.click()
    expect(page.locator("#query-label")).not_to_have_text("Your picture")
    shown(page)
    expect(page.locator("#unfamiliar")).to_be_hidden()


def test_one_of_many_labels_is_found_by_typing(page: Page) -> None:
    labels: list[dict[str, str | int | None]] = [
        {"label": f"label {number}", "count": None} for number in range(300)
    ]
    labels.append({"label": KINDS[3], "count": PER_KIND})
    page.route("**/labels", lambda route: route.fulfill(json={"labels": labels}))
    page.goto(f"{page.url}#id={KINDS[0]}-00")
    page.reload()
    shown(page)
    expect(page.locator("#labels label")).to_have_count(24)
    page.get_by_role("searchbox", name="Find a label").fill(KINDS[3].upper())
    expect(page.locator("#labels label")).to_have_count(1)
    page.get_by_role("checkbox", name=KINDS[3]).check()
    shown(page, PER_KIND)
    page.get_by_role("searchbox", name="Find a label").fill("")
    expect(page.locator("#labels label")).to_have_count(25)
    expect(page.get_by_role("checkbox", name=KINDS[3])).to_be_checked()


def test_an_unknown_label_gets_a_suggestion(open_page: Callable[..., Page], url: str) -> None:
    page = open_page(f"{url}#id={KINDS[0]}-00&label={KINDS[2][:-1]}&label={KINDS[1]}")
    shown(page, PER_KIND)
    page.goto("about:blank")
    page.goto(f"{url}#id={KINDS[0]}-00&label={KINDS[2][:-1]}")
    expect(page.locator("#none")).to_contain_text(f"label “{KINDS[2][:-1]}”")
    page.get_by_role("button", name=f"Did you mean “{KINDS[2]}”?").click()
    shown(page, PER_KIND)
    expect(page.get_by_role("checkbox", name=KINDS[2])).to_be_checked()
    many = [{"label": f"number {number}", "count": 1} for number in range(30)]
    many.append({"label": "Norwegian elkhound", "count": 1})
    page.route("**/labels", lambda route: route.fulfill(json={"labels": many}))
    page.reload()
    search = page.get_by_role("searchbox", name="Find a label")
    search.fill("norwegean elkhund")
    expect(page.locator("#label-hint")).to_have_text("No such label. Did you mean:")
    expect(page.locator("#labels label")).to_have_text([KINDS[2], "Norwegian elkhound 1"])
    search.fill("something else")
    expect(page.locator("#label-hint")).to_have_text("No such label.")
    search.fill("elk")
    expect(page.locator("#label-hint")).to_be_hidden()


# --- what is done with matches --------------------------------------------------------------------


def test_selected_matches_are_downloaded(page: Page, tmp_path: Path) -> None:
    metadata = {"path": '=HYPERLINK("x"), too', "year": 2026, "tags": ["a", "b"]}

    def with_metadata(route: Route) -> None:
        answer = route.fetch().json()
        answer["matches"][1]["metadata"] = metadata
        answer["matches"][2]["id"] = "%C3%A9t%C3%A9.jpg"
        route.fulfill(json=answer)

    page.route("**/query", with_metadata)
    page.goto(f"{page.url}#id={KINDS[0]}-00")
    first, second, *_ = shown(page)
    for number in (0, 1, 2, 3):
        page.locator(".match").nth(number).hover()
        page.get_by_role("button", name=re.compile("^Select ")).nth(number).click()
    page.get_by_role("button", name=re.compile("^Select ")).nth(3).click()
    page.locator(".picture").nth(4).click()  # another search keeps them
    expect(page.locator("#query-id")).not_to_have_text(f"{KINDS[0]}-00")
    shown(page)
    expect(page.get_by_role("region", name="Selected images")).to_contain_text("3 selected")

    def saved(kind: str) -> str:
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Download as {kind}").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        return path.read_bytes().decode()

    rows = json.loads(saved("JSON"))
    assert [row["id"] for row in rows] == [first, second, "%C3%A9t%C3%A9.jpg"]
    assert [row["name"] for row in rows] == [first, second, "été.jpg"]
    assert rows[1]["metadata"] == metadata
    table = list(csv.DictReader(io.StringIO(saved("CSV"), newline="")))
    assert [row["id"] for row in table] == [row["id"] for row in rows]
    assert [float(row["score"]) for row in table] == [row["score"] for row in rows]
    assert table[1]["metadata.path"] == '\'=HYPERLINK("x"), too'  # no formula
    assert table[1]["metadata.year"] == "2026"
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_role("region", name="Selected images")).to_be_hidden()


@pytest.mark.parametrize("side", [128, 256])
def test_large_thumbnails_get_room_and_no_label_is_cut(
    open_page: Callable[..., Page], url: str, side: int
) -> None:
    label = "long-sleeved undershirt and Donaudampfschifffahrt"
    thumbnail = base64.b64encode(encode(QUERY.resize((side, side // 2)), "JPEG")).decode()

    def photos(route: Route) -> None:
        answer = route.fetch().json()
        for match in answer["matches"]:
            match["label"], match["confidence"] = label, 0.5
            match["thumbnail"] = f"data:image/jpeg;base64,{thumbnail}"
        route.fulfill(json=answer)

    page = open_page(url, viewport=PHONE)
    page.route("**/query", photos)
    page.goto(f"{url}#id={KINDS[0]}-00")
    shown(page)
    is_large = re.compile(r"\blarge\b")
    grid = expect(page.locator("#matches"))
    (grid.to_have_class if side > 128 else grid.not_to_have_class)(is_large)
    for viewport, least in ((PHONE, 150), (DESKTOP, 216)):
        page.set_viewport_size({"width": viewport["width"], "height": viewport["height"]})
        width = page.locator(".picture").first.evaluate("it => it.clientWidth")
        assert (width >= least) == (side > 128)
        cut = "all => all.filter(it => it.scrollWidth > it.clientWidth + 1).length"
        assert page.locator(".match strong").evaluate_all(cut) == 0
        expect(page.locator(".match strong").first).to_have_text(label)


@BOTH
@pytest.mark.long
def test_two_pictures_are_compared(
    open_page: Callable[..., Page], settings: Settings, embedder: Embedder
) -> None:
    index = fill(settings, embedder)
    levels = np.array(PAIR_LEVELS)
    pairs = PairScores(same_kind=tuple(levels), different_kinds=tuple(levels / 2))
    index.save_calibration(Calibration(scores=(0,), confidences=(0,), pairs=pairs))
    one, other = (unit(embedder.embed([embedder.pixels(each)])[0]) for each in (QUERY, OTHER))
    score = float(one @ other)
    assert 0.01 < score < 0.49
    with ServiceThread(settings, seconds_to_end=1) as service:
        service.wait_until_ready()
        url = f"{service.url}/"
        page = open_page(url)
        page.get_by_role("link", name="Compare two pictures").click()
        expect(page.locator("#comparison-title")).to_be_focused()
        expect(page.locator("#start")).to_be_hidden()
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Choose a picture, the second").click()
        picture = {"name": "b.png", "mimeType": "image/png", "buffer": encode(OTHER)}
        chooser.value.set_files(picture)  # type: ignore[arg-type]
        expect(page.locator("#b-name")).to_have_text("Your picture")
        expect(page.locator("#verdict")).to_be_hidden()
        upload(page, encode(QUERY))  # for the side that is empty
        expect(page.locator("#score")).to_have_text(f"score {score:.3f}")
        expect(page.locator("#same-share")).to_have_text(f"{100 * (1 - score):.0f} %")
        expect(page.locator("#different-share")).to_have_text(f"{100 * (1 - 2 * score):.0f} %")
        expect(page.locator("#announcement")).to_contain_text(
            f"score {score:.3f}. {100 * (1 - score):.0f} % of the pairs of one kind and"
        )
        for side in ("a", "b"):
            assert is_loaded(page.locator(f"#{side}-picture"))
        link = open_page(page.url)
        expect(link.locator("#score")).to_have_text(f"score {score:.3f}")
        assert is_loaded(link.locator("#a-picture"))

        drop = base64.b64encode(b"no picture").decode()
        page.evaluate(DROP, ["drop", drop])
        expect(page.get_by_role("alert")).to_contain_text("could not be compared")
        page.get_by_role("link", name="Image search").click()
        expect(page.locator("#start")).to_be_visible()
        page.go_back()
        expect(page.locator("#score")).to_have_text(f"score {score:.3f}")
        page.goto(f"{url}#id={KINDS[0]}-00")
        first = shown(page)
        page.locator(".match").first.hover()
        page.get_by_role("button", name=re.compile("^Select ")).first.click()
        page.get_by_role("button", name="Compare", exact=True).click()  # with the query
        expect(page.locator("#a-picture")).to_have_attribute("title", f"{KINDS[0]}-00")
        expect(page.locator("#b-picture")).to_have_attribute("title", first[0])
        found = index.query(index.fetch([f"{KINDS[0]}-00"])[f"{KINDS[0]}-00"].embedding, 2)[1]
        expect(page.locator("#score")).to_have_text(f"score {found.score:.3f}")
        page.go_back()
        expect(page.locator(".id").first).to_have_text(first[0])


def test_an_index_without_labels_says_that_it_cannot_tell(
    open_page: Callable[..., Page], url: str
) -> None:
    page = open_page(f"{url}#compare&a.id={KINDS[0]}-00&b.id={KINDS[1]}-00")
    expect(page.locator("#score")).to_have_text(re.compile(r"score -?0\.\d{3}"))
    expect(page.locator("#meaning")).to_be_hidden()
    expect(page.locator("#meaningless")).to_contain_text("too few labels")
    page = open_page(f"{url}#compare&a.id={KINDS[0]}-00&b.id=gone")
    expect(page.get_by_role("alert")).to_contain_text("'gone'")
    page = open_page(f"{url}#compare&a.embedding=AAAA")
    expect(page.get_by_role("alert")).to_contain_text("The link is damaged")
    expect(page.locator("#start")).to_be_visible()


# --- links ----------------------------------------------------------------------------------------


def test_a_link_shows_the_same_search_to_others(
    open_page: Callable[..., Page], url: str, page: Page
) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    upload(page, encode(QUERY))
    liked = shown(page)[3]
    page.get_by_role("button", name=f"{liked} as a positive example").click()
    page.get_by_role("slider", name="How many").fill("9")
    page.get_by_role("checkbox", name="near-duplicates").check()
    expected = shown(page, 9)
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    link = page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(f"{url}#embedding=")
    assert len(link) < 8000
    other = open_page(link)
    assert shown(other, 9) == expected
    assert is_loaded(other.locator("#query-picture"))
    assert is_loaded(other.locator("#positive img"))
    expect(other.get_by_role("checkbox", name="near-duplicates")).to_be_checked()


def test_a_link_that_cannot_be_reproduced_says_why(
    open_page: Callable[..., Page], url: str, page: Page
) -> None:
    upload(page, encode(QUERY))
    shown(page)
    other = open_page(re.sub("model=.", "model=f", page.url))
    expect(other.get_by_role("alert")).to_contain_text("made with another model")
    expect(other.locator(".match")).to_have_count(0)
    other = open_page(page.url[: len(url) + 500])
    expect(other.get_by_role("alert")).to_contain_text("The link is damaged")
    expect(other.locator("#start")).to_be_visible()
    other = open_page(f"{url}#id=gone")
    expect(other.get_by_role("alert")).to_contain_text("gone")


def test_ids_are_shown_as_names(
    open_page: Callable[..., Page], settings: Settings, embedder: Embedder
) -> None:
    index = fill(settings, embedder)
    record = index.fetch([f"{KINDS[1]}-00"])[f"{KINDS[1]}-00"]
    names = {
        "%C3%A9t%C3%A9-2.jpg": "été-2.jpg",
        "50%25.jpg": "50%.jpg",
        "%C3%A9%2F%FF%ED%A0%80%E2%80%AEgpj": "é%2F%FF%ED%A0%80%E2%80%AEgpj",
    }
    ids = iter(names)
    index.upsert(
        [
            Record(next(ids), record.embedding, "summer", {}, record.thumbnail),
            *(Record(id_, record.embedding, None, {}, record.thumbnail) for id_ in ids),
        ]
    )
    with ServiceThread(settings, seconds_to_end=1) as service:
        service.wait_until_ready()
        page = open_page(f"{service.url}/#id={KINDS[1]}-00")
        shown(page)
        assert set(page.locator(".id").all_text_contents()[:3]) == set(names.values())
        link = page.get_by_role("link", name="summer, été-2.jpg")
        assert "%25C3%25A9t" in str(link.get_attribute("href"))
        expect(page.locator(".id").filter(has_text="été-2.jpg")).to_have_attribute(
            "title", re.compile("id: %C3%A9t%C3%A9-2.jpg")
        )
        expect(page.locator(".match strong").filter(has_text="50%.jpg")).to_be_visible()
        link.click()
        expect(page.locator("#query-label")).to_have_text("summer")
        expect(page.locator("#query-id")).to_have_text("été-2.jpg")
        assert "%25C3%25A9t" in page.url


# --- errors, and waiting --------------------------------------------------------------------------


@BOTH
def test_errors_are_told_in_words(page: Page) -> None:
    upload(page, b"no picture", "notes.png")
    expect(page.get_by_role("alert")).to_contain_text("“notes.png” could not be searched for")
    expect(page.get_by_role("alert")).to_contain_text(
        "Not an image in a format that can be read: send it as JPEG or PNG."
    )
    upload(page, bytes(3_000_000), "raw.bin", "application/octet-stream")
    expect(page.get_by_role("alert")).to_contain_text("more than 2,000,000 bytes")
    page.get_by_role("button", name="Close this message").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    upload(page, encode(QUERY))
    shown(page)


def test_the_answer_to_an_outdated_question_is_not_shown(page: Page) -> None:
    held: list[Route] = []
    upload(page, encode(QUERY))
    first = shown(page)
    page.route("**/query", lambda route: route.continue_() if held else held.append(route))
    page.locator(".picture").nth(1).click()
    expect(page.locator("#progress")).to_be_visible()
    expect(page.locator("#query-id")).to_have_text(first[1])
    with page.expect_event("requestfailed") as outdated:
        page.go_back()
    expect(page.locator("#query-label")).to_have_text("Your picture")
    assert shown(page) == first
    expect(page.locator("#progress")).to_be_hidden()
    assert [outdated.value] == [route.request for route in held]
    assert outdated.value.failure == "net::ERR_ABORTED"
    held[0].abort()  # a route that is never answered is reported in a later test


def test_a_service_that_is_away_is_waited_for(page: Page) -> None:
    upload(page, encode(QUERY))
    shown(page)
    page.context.set_offline(True)
    page.locator(".picture").first.click()
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer")
    page.context.set_offline(False)
    shown(page)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_an_index_that_is_missing_is_waited_for(
    open_page: Callable[..., Page], settings: Settings, embedder: Embedder
) -> None:
    with ServiceThread(settings, seconds_to_end=1) as service:
        page = open_page(f"{service.url}/")
        expect(page.get_by_role("alert")).to_contain_text("ingest")
        expect(page.locator("#index-summary")).to_have_text("not ready")
        fill(settings, embedder)
        expect(page.locator("#index-summary")).to_contain_text("images", timeout=20_000)
        expect(page.get_by_role("alert")).to_be_hidden()
        upload(page, encode(QUERY))
        shown(page)


@pytest.mark.long
def test_a_key_is_asked_for_and_kept_and_nothing_of_others_is_markup(
    open_page: Callable[..., Page], tmp_path: Path, embedder: Embedder
) -> None:
    settings = load_settings(data_dir=tmp_path, api_keys=KEY, read_needs_key=True)
    index = fill(settings, embedder)
    record = index.fetch([f"{KINDS[1]}-00"])[f"{KINDS[1]}-00"]
    metadata = {"note": NASTY}
    index.upsert([Record(f"a/{NASTY}&#?%41", record.embedding, NASTY, metadata, record.thumbnail)])
    with ServiceThread(settings, seconds_to_end=1) as service:
        page = open_page(f"{service.url}/")
        form = page.locator("#key-form")
        expect(page.get_by_role("alert")).to_contain_text("needs a key", timeout=20_000)
        form.get_by_label("Key").fill("wrong")
        form.get_by_role("button").click()
        expect(page.get_by_role("alert")).to_contain_text("not accepted")
        form.get_by_label("Key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#some-section")).to_be_visible()
        upload(page, encode(QUERY))
        found = shown(page)
        page.goto(f"{service.url}/#id={KINDS[1]}-00")
        expect(page.locator("#query-id")).to_have_text(f"{KINDS[1]}-00")
        expect(page.locator(".id").first).to_have_text(f"a/{NASTY}&#?%41")
        assert shown(page) != found
        expect(page.locator(".match strong").first).to_have_text(NASTY)
        page.locator(".picture").first.click()
        expect(page.locator("#query-id")).to_have_text(f"a/{NASTY}&#?%41")
        page.reload()
        shown(page)
        assert is_loaded(page.locator("#query-picture"))
        page.get_by_role("button", name="as a negative example").first.click()
        expect(page.locator("#negative button")).to_have_count(1)
        # What needs a key is kept no longer than the key.
        page.get_by_role("link", name="Image search").click()
        expect(page.locator("#recent a").first).to_have_attribute("title", re.compile("^<img src"))
        assert page.evaluate("localStorage.length") == 0


def test_changes_of_the_index_are_shown_as_they_come(
    open_page: Callable[..., Page], url: str
) -> None:
    page = open_page("about:blank")
    page.clock.install()
    count = 1000
    labels = [{"label": "boat", "count": 1}]

    def health(route: Route) -> None:
        route.fulfill(json={**route.fetch().json(), "count": count})

    page.route("**/health", health)
    page.route("**/labels", lambda route: route.fulfill(json={"labels": labels}))
    page.goto(f"{url}#browse")
    expect(page.locator("#index-summary")).to_have_text("1,000 images")
    expect(page.locator("#browse-labels label")).to_have_text(["boat 1"])
    expect(page.locator("#index-change")).to_be_hidden()
    for count, change in ((1500, "+500"), (2250, "+1,250"), (900, "\N{MINUS SIGN}100")):
        page.clock.run_for(10_000)
        expect(page.locator("#index-summary")).to_have_text(f"{count:,} images")
        expect(page.locator("#index-change")).to_have_text(f"{change} in the last minute")
    page.locator("#index summary").click()
    expect(page.locator("#index-facts")).to_contain_text("\N{MINUS SIGN}100 in the last minute")
    count = 1_000_000
    for width in (390, 320):
        page.set_viewport_size({"width": width, "height": 640})
        count += 100_000
        page.clock.run_for(10_000)
        expect(page.locator("#index-summary")).to_have_text(f"{count:,} images")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert Axe().run(page).response["violations"] == []
    labels = [{"label": "boat", "count": 2}, {"label": "new", "count": 1}]
    page.clock.run_for(10_000)  # it has settled
    expect(page.locator("#browse-labels label")).to_have_text(["boat 2", "new 1"])
    for _ in range(20):
        page.clock.run_for(10_000)
    expect(page.locator("#index-change")).to_be_hidden()


# --- everybody ------------------------------------------------------------------------------------


@BOTH
def test_the_keyboard_alone_is_enough(page: Page) -> None:
    def tab_to(element: Locator) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if element.evaluate("it => it === document.activeElement"):
                return
        raise AssertionError(f"Tab does not reach {element}")

    expect(page.locator("#some a").first).to_be_visible()
    tab_to(page.get_by_role("button", name="Choose a picture"))
    tab_to(page.get_by_role("button", name="boat"))
    page.keyboard.press("Enter")
    first = shown(page)
    expect(page.locator("#results-title")).to_be_focused()
    tab_to(page.locator(".picture").nth(1))
    page.keyboard.press("Enter")
    expect(page.locator("#query-id")).to_have_text(first[1])
    shown(page)
    tab_to(page.get_by_role("button", name="as a positive example").first)
    page.keyboard.press("Space")
    expect(page.locator("#positive button")).to_have_count(1)
    back = page.get_by_role("button", name="Back")
    expect(page.locator("#results-title")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    assert back.evaluate("it => getComputedStyle(it).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.locator("#positive button")).to_have_count(0)


@pytest.mark.long
@pytest.mark.parametrize(
    ("scheme", "viewport"),
    [
        ("light", DESKTOP),
        ("dark", DESKTOP),
        ("light", PHONE),
        ("dark", {"width": 320, "height": 640}),
    ],
)
def test_every_view_is_accessible_and_fits(
    open_page: Callable[..., Page], url: str, scheme: str, viewport: dict[str, int]
) -> None:
    page = open_page(url, color_scheme=scheme, viewport=viewport, reduced_motion="reduce")
    ink, paper = page.evaluate(
        "(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))"
    )
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (brightness[0] < brightness[1]) == (scheme == "light")

    def check(view: str) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], view
        violations = Axe().run(page).response["violations"]
        assert violations == [], view

    expect(page.locator("#some a").first).to_be_visible()
    check("start")
    upload(page, b"no picture")
    expect(page.get_by_role("alert")).to_be_visible()
    check("error")
    upload(page, encode(QUERY))
    shown(page)
    for sign in ("positive", "negative"):
        page.get_by_role("button", name=f"as a {sign} example").first.click()
        expect(page.locator(f"#{sign} img")).to_have_count(1)
    shown(page)
    page.locator("#index summary").click()
    if viewport != DESKTOP:
        page.locator("#options summary").click()
    page.get_by_role("checkbox", name=KINDS[0]).check()
    shown(page, PER_KIND)
    check("found")
    for button in page.get_by_role("button", name=re.compile("^Select ")).all()[:2]:
        button.click()
    check("selected")
    page.get_by_role("button", name="Part of it").click()
    check("part")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#verdict")).to_be_visible()
    check("compared")
    page.goto(f"{url}#browse&label={KINDS[0]}")
    expect(page.locator("#images .match")).to_have_count(PER_KIND)
    check("browsed")
    page.get_by_role("link", name="Image search").click()
    expect(page.locator("#recent a")).to_have_count(1)
    check("start again")


def test_the_page_works_below_a_prefix(open_page: Callable[..., Page], url: str) -> None:
    page = open_page("about:blank")
    strays: list[str] = []

    def proxy(route: Route) -> None:
        path = route.request.url.removeprefix(url)
        if path.startswith("find/"):
            route.fulfill(response=route.fetch(url=url + path.removeprefix("find/")))
        else:
            strays.append(path)
            route.abort()

    page.context.route(f"{url}**", proxy)
    page.goto(f"{url}find/")
    assert is_loaded(page.locator("#home img"))
    page.get_by_role("button", name="boat").click()
    first = shown(page)
    page.locator(".picture").nth(1).click()
    expect(page.locator("#query-id")).to_have_text(first[1])
    shown(page)
    assert page.url.startswith(f"{url}find/#id=")
    page.reload()
    shown(page)
    page.get_by_role("link", name="Image search").click()
    expect(page.locator("#start")).to_be_visible()
    assert page.url == f"{url}find/"
    assert strays == []


# --- videos and originals ------------------------------------------------------------------------

FILM = "clips/%C3%A9t%C3%A9.webm"
SECONDS = 4


def film_frame(second: int) -> Image.Image:
    """What the film shows in this second."""
    return draw(KINDS[second], 700 + second).resize((320, 240))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a film and a photo."""
    root = tmp_path_factory.mktemp("media")
    (root / "clips").mkdir()
    (root / "photos").mkdir()
    pictures = [np.asarray(film_frame(number // 10)) for number in range(10 * SECONDS)]
    write_video(root / "clips" / "été.webm", pictures, codec="libvpx-vp9")
    (root / "photos" / "1.jpg").write_bytes(encode(QUERY.resize((700, 500)), "JPEG"))
    return root


@pytest.fixture(scope="module")
def films(
    originals: Path, embedder: Embedder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a service with a frame of each second of the film, photos, and originals."""
    settings = load_settings(data_dir=tmp_path_factory.mktemp("films"), media_root=str(originals))
    pictures = {frame_id(FILM, second): film_frame(second) for second in range(SECONDS)}
    pictures |= {"photos/1.jpg": QUERY, "photos/2.jpg": OTHER}
    embeddings = embedder.embed([embedder.pixels(picture) for picture in pictures.values()])
    manifest = Manifest.new(embedder.model, settings.metric, settings.namespace)
    with create_index(settings, manifest) as index:
        index.upsert(
            [
                Record(id_, embedding, None, described(id_), encode(picture, "JPEG"))
                for (id_, picture), embedding in zip(pictures.items(), embeddings, strict=True)
            ]
        )
    with ServiceThread(settings, seconds_to_end=1) as service:
        service.wait_until_ready()
        yield f"{service.url}/"


def described(id_: str) -> Metadata:
    video, _, time = id_.partition("#t=")
    return {"video": video, "time": float(time)} if time else {}


def playing(page: Page) -> tuple[float, bool]:
    """Where the player is, and whether it has a picture."""
    found: tuple[float, bool] = page.locator("#viewer-video").evaluate(
        "it => [it.currentTime, it.readyState >= 2 && it.videoWidth === 320]"
    )
    return found


def test_a_video_is_found_once_and_played_from_the_moment_that_was_found(
    open_page: Callable[..., Page], films: str
) -> None:
    page = open_page(films)
    upload(page, encode(film_frame(3)))
    assert shown(page, 3)[0] == "clips/été.webm"
    card = page.locator(".match").first
    play = card.get_by_role("button", name="Play clips/été.webm at 0:03")
    expect(play).to_have_text("▶ 0:03")
    expect(card.locator(".marks span")).to_have_count(SECONDS)
    play.click()
    wait_until(lambda: playing(page)[1])
    assert playing(page)[0] >= 3
    expect(page.locator("#viewer-path")).to_have_text("clips/été.webm")
    chips = page.locator("#viewer-moments button")
    expect(chips).to_have_text([f"0:0{second}" for second in range(SECONDS)])
    expect(chips.nth(3)).to_have_attribute("aria-pressed", "true")
    chips.nth(1).click()
    wait_until(lambda: 1 <= playing(page)[0] < 3)
    assert Axe().run(page).response["violations"] == []
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    wait_until(lambda: page.locator("#viewer-video").get_attribute("src") is None)
    # Each frame by itself.
    page.get_by_label("Each video once").uncheck()
    assert len(shown(page, SECONDS + 2)) == SECONDS + 2
    assert "group_by=none" in page.url
    page.reload()
    assert len(shown(page, SECONDS + 2)) == SECONDS + 2


@BOTH
def test_moments_of_a_video_are_stepped_through_by_mouse_and_by_keys(
    open_page: Callable[..., Page], films: str
) -> None:
    page = open_page(f"{films}#id=photos/2.jpg")
    shown(page, 2)
    card = page.locator(".match:has(.marks)")
    link, time = card.locator(".picture"), card.locator(".view")
    best = str(time.text_content())
    first = str(link.locator("img").get_attribute("src"))
    box = link.bounding_box()
    assert box is not None
    for share, text in ((0.05, "▶ 0:00"), (0.4, "▶ 0:01"), (0.95, "▶ 0:03")):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        expect(time).to_have_text(text)
        second = int(text[-1])
        expect(link).to_have_attribute("href", re.compile(rf"t%3D{second}\.000"))
        if text != best:
            expect(link.locator("img")).not_to_have_attribute("src", first)
    page.mouse.move(1, 1)
    expect(time).to_have_text(best)
    expect(link.locator("img")).to_have_attribute("src", first)
    link.focus()
    page.keyboard.press("ArrowRight")
    expect(time).to_have_text(f"▶ 0:0{(int(best[-1]) + 1) % SECONDS}")
    expect(page.locator("#announcement")).to_contain_text(f"of {SECONDS}")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expected = (int(best[-1]) - 1) % SECONDS
    expect(time).to_have_text(f"▶ 0:0{expected}")
    page.keyboard.press("Enter")  # more like that moment, without its video
    expect(page.locator("#query-id, #query-label").first).to_contain_text(f"t={expected}.000")
    assert len(shown(page, 2)) == 2
    assert page.locator(".marks").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_original_of_a_photo_is_seen_large_with_its_path(
    open_page: Callable[..., Page], films: str, scheme: str
) -> None:
    page = open_page(f"{films}#id=photos/2.jpg", color_scheme=scheme)
    shown(page, 2)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".match", has=page.locator(".photo")).hover()
    page.get_by_role("button", name="See photos/1.jpg large").click()
    picture = page.locator("#viewer-picture")
    wait_until(lambda: picture.evaluate("it => it.naturalWidth") == 700)
    page.get_by_role("button", name="Copy the path").click()
    expect(page.locator("#viewer-copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "photos/1.jpg"
    assert Axe().run(page).response["violations"] == []
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#viewer")).to_be_hidden()


@BOTH
def test_large_matches_are_turned_over(open_page: Callable[..., Page], films: str) -> None:
    page = open_page(f"{films}#browse")
    expect(page.locator("#images .match")).to_have_count(SECONDS + 2)
    names = page.locator("#images .match strong").all_text_contents()
    first, last = names.index("photos/1.jpg"), names.index("photos/2.jpg")
    assert (first, last) == (SECONDS, SECONDS + 1)
    tile = page.locator("#images .match").nth(first)
    tile.hover()
    tile.get_by_role("button", name="See photos/1.jpg large").click()
    picture = page.locator("#viewer-picture")
    wait_until(lambda: picture.evaluate("it => it.naturalWidth") == 700)
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#viewer-title")).to_have_text("photos/2.jpg")
    expect(page.locator("#viewer-problem")).to_contain_text("not in the folder of originals")
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#viewer-title")).to_have_text("photos/1.jpg")
    expect(page.locator("#viewer-problem")).to_be_hidden()
    wait_until(lambda: picture.evaluate("it => it.naturalWidth") == 700)
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#viewer-title")).to_have_text("clips/été.webm")
    wait_until(lambda: playing(page)[1])
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    before = page.locator("#images .match").nth(first - 1)
    expect(before.get_by_role("button", name="Play")).to_be_focused()


def test_an_original_that_is_not_there_is_told_of(
    open_page: Callable[..., Page], films: str
) -> None:
    page = open_page(f"{films}#id=photos/1.jpg")
    shown(page, 2)
    page.locator(".match", has=page.locator(".photo")).hover()
    page.get_by_role("button", name="See photos/2.jpg large").click()
    expect(page.locator("#viewer-problem")).to_contain_text("not in the folder of originals")
    assert is_loaded(page.locator("#viewer-picture"))


@BOTH
def test_a_video_is_searched_with_as_a_picture_is(
    open_page: Callable[..., Page], films: str, originals: Path
) -> None:
    page = open_page(films)
    with page.expect_request("**/embeddings") as request:
        upload(page, (originals / "clips" / "été.webm").read_bytes(), "film.webm", "video/webm")
    assert request.value.method == "POST"
    assert shown(page, 3)[0] == "clips/été.webm"
    picture = page.locator("#query-picture")
    assert is_loaded(picture)
    assert picture.evaluate("it => it.naturalWidth") == 320
    page.get_by_role("button", name="Part of it").click()
    expect(page.locator("#crop")).to_be_visible()


def test_frames_are_sent_to_a_service_that_reads_no_videos(
    open_page: Callable[..., Page],
    films: str,
    originals: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(videos, "is_available", lambda: False)
    page = open_page(films)
    upload(page, (originals / "clips" / "été.webm").read_bytes(), "film.webm", "video/webm")
    assert shown(page, 3)[0] == "clips/été.webm"


def test_of_a_large_video_frames_are_sent(
    open_page: Callable[..., Page], films: str, originals: Path
) -> None:
    page = open_page("about:blank")
    module = (ROOT / "service" / "web" / "pictures.js").read_text()
    assert "MAX_VIDEO_BYTES = 20_000_000;" in module
    smaller = module.replace("MAX_VIDEO_BYTES = 20_000_000;", "MAX_VIDEO_BYTES = 1_000;")
    page.route(
        "**/web/pictures.js",
        lambda route: route.fulfill(body=smaller, content_type="text/javascript"),
    )
    page.goto(films)
    sent: list[int] = []
    page.on(
        "request",
        lambda request: sent.append(1) if request.url.endswith("/embeddings") else None,
    )
    upload(page, (originals / "clips" / "été.webm").read_bytes(), "film.webm", "video/webm")
    assert shown(page, 3)[0] == "clips/été.webm"
    assert len(sent) == 16


@pytest.mark.long
def test_pictures_of_every_state_are_taken(browser: Browser, tmp_path: Path) -> None:
    with pictures.served(tmp_path) as url:
        pictures.take_states(browser, "chromium", "dark", url, tmp_path, ["phone"])
    taken = sorted(path.name for path in tmp_path.glob("*.png"))
    assert taken == sorted(f"chromium-dark-phone-{state}.png" for state in pictures.STATES)
    for name in taken:
        with Image.open(tmp_path / name) as image:
            assert image.size == (PHONE["width"], PHONE["height"])


# --- files ----------------------------------------------------------------------------------------


def test_the_page_is_small_strict_and_never_old() -> None:
    client = TestClient(create_app(load_settings()), "http://localhost")
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    files = ["/", *(f"/{name}" for name in re.findall(r'(?:src|href)="(web/[^"]+)"', page.text))]
    assert len(files) > 15
    modules = {f"/web/{path.name}" for path in (ROOT / "service" / "web").glob("*.js")}
    assert modules <= set(files), "a module that is not preloaded is found late"
    size = 0
    for file in files:
        answer = client.get(file)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
        again = client.get(file, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.head(file).status_code == 200
        assert not re.search(rb"https?://(?!www\.w3\.org)", answer.content)
        size += len(answer.content)
    manifest = client.get("/web/manifest.webmanifest")
    assert manifest.headers["content-type"] == "application/manifest+json"
    icons = {icon["src"] for icon in manifest.json()["icons"]}
    size += sum(len(client.get(f"/web/{icon}").content) for icon in icons)
    assert size < 250_000
    assert_problem(client.get("/web/nothing.js"), 404, "not_found")
    assert_problem(client.get("/web/../page.py"), 404, "not_found")
    assert_problem(client.get("/web/%2e%2e/page.py"), 404, "not_found")


def test_the_page_can_be_installed(open_page: Callable[..., Page], url: str) -> None:
    page = open_page(url)
    tools = page.context.new_cdp_session(page)
    found = tools.send("Page.getAppManifest")
    assert found["errors"] == []
    assert found["url"] == f"{url}web/manifest.webmanifest"
    manifest = json.loads(found["data"])
    assert urljoin(found["url"], manifest["start_url"]) == url
    assert urljoin(found["url"], manifest["scope"]) == url
    for icon in manifest["icons"][1:]:
        with Image.open(ROOT / "service" / "web" / icon["src"]) as image:
            assert icon["sizes"] == f"{image.width}x{image.height}"
    errors = tools.send("Page.getInstallabilityErrors")["installabilityErrors"]
    assert [error for error in errors if error["errorId"] != "in-incognito"] == []


def test_the_page_and_the_documentation_know_their_prefix() -> None:
    client = TestClient(create_app(load_settings()), "http://localhost", root_path="/find")
    assert client.get("/find", follow_redirects=False).headers["location"].endswith("/find/")
    assert not re.search(r"""(?:src|href)=["']/""", client.get("/find/").text)
    documentation = client.get("/find/docs").text
    for path in re.findall(r"""["'](/[\w.-][^"']*)["']""", documentation):
        assert path.startswith("/find/") or path == "/docs/oauth2-redirect", path
    assert client.get("/find/openapi.json").json()["servers"] == [{"url": "/find"}]


def test_the_examples_of_the_readme_are_those_of_the_page() -> None:
    names = sorted(path.name for path in (ROOT / "examples").glob("*.png"))
    page = (ROOT / "service" / "web" / "index.html").read_text()
    assert re.findall(r"web/examples/(\w+\.png)", page) == names
    for name in names:
        with Image.open(io.BytesIO((ROOT / "examples" / name).read_bytes())) as image:
            assert image.size == (96, 96)
