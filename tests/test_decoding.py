"""The decoding processes and their limits, tried with files made to be costly."""

import re
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from PIL import Image

from image_search import images
from image_search.decoding import Decoder, Limits
from image_search.decoding.plain import is_plain
from image_search.errors import (
    ImageError,
    ImageTooCostlyError,
    ImageTooLargeError,
    NotAnImageError,
)
from tests.support.costly import many_entries, png, qoi, repeated_scans, strips, turned
from tests.support.images import encode
from tests.support.odd import odd_files
from tests.support.waiting import wait_until

MIB: Final = 1024 * 1024
SIDE: Final = 256
MANY: Final = 200_000_000
# Small enough that a test is quick; patient by the clock, as machines may be busy.
TIGHT: Final = Limits(memory=24 * MIB, large_memory=32 * MIB, cpu_seconds=0.5, wall_seconds=60)


_before: Final[set[psutil.Process]] = set()


@pytest.fixture(autouse=True)
def _only_own_children(tight: Decoder, decoder: Decoder) -> None:  # noqa: ARG001
    _before.clear()
    _before.update(psutil.Process().children())


def children() -> list[psutil.Process]:
    """The processes that the test itself has started."""
    return [child for child in psutil.Process().children() if child not in _before]


@pytest.fixture(scope="module")
def tight() -> Iterator[Decoder]:
    limits = Limits(cpu_seconds=TIGHT.cpu_seconds, wall_seconds=TIGHT.wall_seconds)
    with Decoder(MANY, processes=1, limits=limits) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(MANY, processes=1) as decoder:
        yield decoder


# --- what is decoded where ---

SMALL: Final = Image.new("RGB", (32, 32), "olive")
PHOTO: Final = Image.linear_gradient("L").resize((4000, 3000)).convert("RGB")
PLAIN: Final = {
    "JPEG": encode(SMALL, "JPEG"),
    "JPEG with EXIF data": encode(SMALL, "JPEG", exif=turned()),
    "progressive JPEG": encode(PHOTO.resize((1200, 900)), "JPEG", progressive=True),
    "photo": encode(PHOTO, "JPEG"),
    "PNG": encode(SMALL, "PNG"),
    "PNG with EXIF data": encode(SMALL, "PNG", exif=turned()),
    "GIF": encode(SMALL, "GIF"),
    "WebP": encode(SMALL, "WEBP"),
    "lossless WebP": encode(SMALL, "WEBP", lossless=True),
    "BMP": encode(SMALL, "BMP"),
}
EXIF_BOMB: Final = many_entries(2000)
COSTLY: Final = {
    "large progressive JPEG": encode(PHOTO, "JPEG", progressive=True),
    "repeated scans": repeated_scans(200, 1100),
    "entries that hold all": encode(SMALL, "JPEG", exif=b"Exif\0\0" + EXIF_BOMB),
    "the same in a PNG": png(4, 4, (b"eXIf", EXIF_BOMB)),
    "the same packed": png(4, 4, (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"0"))),
    "large profile": png(4, 4, (b"iCCP", b"x\0\0" + bytes(20_000))),
    "large PNG": png(3000, 3000),
    "many chunks": png(4, 4, *[(b"tEXt", b"")] * 5000),
    "large WebP": encode(Image.new("L", (2000, 1000)), "WEBP"),
    "WebP with EXIF data": encode(SMALL, "WEBP", exif=turned()),
    "large frame of a GIF": encode(Image.new("L", (2000, 1000)), "GIF"),
    "small screen of a GIF": b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\xff\xff\xff\xff" + bytes(20),
    "large BMP": encode(Image.new("L", (2000, 1000)), "BMP"),
    "TIFF": encode(SMALL, "TIFF"),
    "QOI": encode(SMALL, "QOI"),
    "JPEG 2000": encode(SMALL, "JPEG2000"),
    "AVIF": encode(SMALL, "AVIF"),
    "nothing": b"",
}


@pytest.mark.parametrize("name", PLAIN)
def test_small_and_plain_files_are_decoded_in_place(name: str) -> None:
    with Decoder(MANY) as decoder:
        image = decoder.decode(PLAIN[name], min_side=SIDE)
        assert (
            image.tobytes() == images.decode(PLAIN[name], max_pixels=MANY, min_side=SIDE).tobytes()
        )
        assert not children()


@pytest.mark.parametrize("name", COSTLY)
def test_all_others_are_not(name: str) -> None:
    assert not is_plain(COSTLY[name], SIDE)


def test_a_jpeg_that_is_not_reduced_is_costly_sooner() -> None:
    assert is_plain(PLAIN["photo"], 700)
    assert not is_plain(PLAIN["photo"], 3000)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "QOI", "AVIF", "JPEG2000"])
def test_a_process_makes_the_same_of_it(decoder: Decoder, kind: str) -> None:
    options = {"progressive": True} if kind == "JPEG" else {}
    content = encode(PHOTO.resize((2400, 1800)), kind, **options)
    expected = images.decode(content, max_pixels=MANY, min_side=SIDE)
    image = decoder.decode(content, min_side=SIDE)
    assert (image.mode, image.size) == ("RGB", expected.size)
    assert image.tobytes() == expected.tobytes()


@pytest.mark.slow
def test_errors_come_back(decoder: Decoder) -> None:
    whole = encode(PHOTO, "PNG")
    with pytest.raises(NotAnImageError, match="damaged"):
        decoder.decode(whole[: len(whole) // 2], min_side=SIDE)
    with pytest.raises(NotAnImageError, match="not an image"):
        decoder.decode(b"text", min_side=SIDE)
    with pytest.raises(NotAnImageError, match="empty"):
        decoder.decode(b"", min_side=SIDE)
    with Decoder(1000) as strict, pytest.raises(ImageTooLargeError, match=r"4000x3000.*1,000"):
        strict.decode(whole, min_side=SIDE)


def test_a_picture_of_108_megapixels_is_read(decoder: Decoder) -> None:
    content = encode(Image.new("L", (12_000, 9000), 99), "JPEG")
    image = decoder.decode(content, min_side=SIDE)
    assert (image.size, image.getpixel((0, 0))) == ((375, 282), (99, 99, 99))


# --- limits ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda: repeated_scans(2000, 6000), id="scans"),
        pytest.param(lambda: qoi(1500), id="QOI"),
        pytest.param(lambda: strips(500_000), id="strips"),
    ],
)
def test_time_is_limited(tight: Decoder, content: Any) -> None:
    file = content()
    before = sum(psutil.Process().cpu_times()[:4])
    with pytest.raises(ImageTooCostlyError, match=r"more than 0\.5 s to decode"):
        tight.decode(file, min_side=SIDE)
    # Its own and its children's: the limit, the start of a process, and reading the file.
    assert sum(psutil.Process().cpu_times()[:4]) - before < 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda: png(3000, 3000, (b"eXIf", turned()[6:])), id="PNG"),
        pytest.param(
            lambda: encode(Image.new("RGBA", (3000, 3000)), "WEBP", lossless=True, exif=turned()),
            id="WebP",
        ),
        pytest.param(lambda: encode(Image.new("RGBA", (2000, 2000)), "JPEG2000"), id="JPEG 2000"),
        pytest.param(
            lambda: encode(Image.new("RGBA", (3000, 3000)), "AVIF", speed=10, exif=turned()),
            id="AVIF",
        ),
        pytest.param(
            lambda: encode(Image.new("RGB", (9000, 3000)), "TIFF", compression="tiff_lzw"),
            id="TIFF",
        ),
        pytest.param(lambda: encode(PHOTO, "JPEG", progressive=True, subsampling=0), id="JPEG"),
    ],
)
def test_memory_is_limited(content: Any) -> None:
    file = content()
    with Decoder(MANY, limits=TIGHT) as decoder:
        decoder.decode(encode(SMALL, "QOI"), min_side=SIDE)
        [process] = children()
        idle = process.memory_info().rss
        with pytest.raises(ImageTooCostlyError, match="more than 32 MiB of memory"):
            decoder.decode(file, min_side=SIDE)
        for process in children():
            assert peak(process) - idle <= TIGHT.large_memory + len(file)


def peak(process: psutil.Process) -> int:
    """The most memory that a process has held at once, in bytes; on Linux."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        return process.memory_info().rss
    [kib] = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
    return 1024 * int(kib)


@pytest.mark.slow
def test_64_megapixels_with_alpha_cost_one_copy(decoder: Decoder) -> None:
    content = png(8000, 8000, (b"eXIf", turned()[6:]))
    image = decoder.decode(content, min_side=SIDE)
    assert (image.size, image.getpixel((0, 0))) == ((259, 259), (255, 255, 255))
    assert all(peak(process) <= 400 * MIB for process in psutil.Process().children())


@pytest.mark.slow
def test_limits_are_for_each_image(tight: Decoder) -> None:
    content = qoi(400)
    for _ in range(12):
        tight.decode(content, min_side=SIDE)


# --- processes ---


@pytest.mark.slow
def test_a_process_that_ends_is_replaced() -> None:
    with Decoder(MANY, processes=1, limits=TIGHT) as decoder:
        for signal_, error, message in (
            (signal.SIGKILL, ImageTooCostlyError, "memory"),  # as the kernel does without memory
            (signal.SIGSEGV, NotAnImageError, "crashed"),
        ):
            decoder.decode(encode(SMALL, "QOI"), min_side=SIDE)
            stop = threading.Event()
            killer = threading.Thread(target=kill_again_and_again, args=(signal_, stop))
            killer.start()
            with pytest.raises(error, match=message):
                decoder.decode(qoi(1500), min_side=SIDE)
            stop.set()
            killer.join()
            assert decoder.decode(encode(SMALL, "QOI"), min_side=SIDE).size == (32, 32)
            assert len(children()) == 1
    assert not children()


def kill_again_and_again(number: int, stop: threading.Event) -> None:
    while not stop.wait(0.02):
        for process in children():
            # Once it has begun to decode.
            if sum(process.cpu_times()[:2]) > 0.2:
                process.send_signal(number)


@pytest.mark.slow
def test_a_process_that_ended_idle_costs_no_image() -> None:
    with Decoder(MANY, processes=1) as decoder:
        decoder.decode(encode(SMALL, "QOI"), min_side=SIDE)
        [process] = children()
        process.kill()
        wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE)
        assert decoder.decode(encode(SMALL, "QOI"), min_side=SIDE).size == (32, 32)
        assert process not in children()


@pytest.mark.slow
def test_waiting_is_limited_by_the_clock() -> None:
    limits = Limits(cpu_seconds=60, wall_seconds=1)
    late = pytest.raises(ImageTooCostlyError, match="more than 1 s to decode")
    with Decoder(MANY, limits=limits) as decoder, late:
        decoder.decode(qoi(3000), min_side=SIDE)


def test_closing_ends_a_decoding_at_once() -> None:
    decoder = Decoder(MANY, processes=1, limits=Limits(cpu_seconds=600, wall_seconds=600))
    content = qoi(3000)
    errors: list[BaseException] = []

    def decode() -> None:
        try:
            decoder.decode(content, min_side=SIDE)
        except ImageError as exc:
            errors.append(exc)

    threads = [threading.Thread(target=decode) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: bool(children()))
    decoder.close()
    for thread in threads:
        thread.join(30)
    assert [type(error) for error in errors] == [ImageTooCostlyError] * 3
    assert not children()
    with pytest.raises(ImageTooCostlyError, match="stopped"):
        decoder.decode(content, min_side=SIDE)


@pytest.mark.slow
def test_it_ends_with_the_program_that_started_it() -> None:
    code = (
        "import sys; from image_search.decoding import Decoder\n"
        "decoder = Decoder(10**9)\n"
        "decoder.decode(sys.stdin.buffer.read(), min_side=256)\n"
        "print(flush=True)\n"
        "import time; time.sleep(600)\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(encode(SMALL, "QOI"))
        program.stdin.close()
        program.stdout.readline()
        [process] = psutil.Process(program.pid).children()
        program.kill()
    wait_until(lambda: not process.is_running())


def test_a_process_is_light_and_knows_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINECONE_API_KEY", "secret of the tests")
    monkeypatch.setenv("IMAGE_SEARCH_API_KEYS", "another secret of the tests")
    with Decoder(MANY) as decoder:
        decoder.decode(encode(SMALL, "QOI"), min_side=SIDE)
        [process] = children()
        assert "secret" not in str(process.environ())
        assert process.memory_info().rss < 100 * MIB
        if sys.platform == "linux":
            assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "1000"


# --- odd files ---


@pytest.mark.long
def test_odd_files_are_read_or_refused_at_little_cost(decoder: Decoder) -> None:
    files = list(odd_files())
    assert len(files) > 200
    whole = refused = 0
    for name, content in files:
        before = cpu_seconds()
        try:
            assert decoder.decode(content, min_side=SIDE).mode == "RGB"
            whole += " cut" not in name and " bits" not in name and " head" not in name
        except ImageError:
            refused += 1
        assert cpu_seconds() - before < 10, name
    assert whole > 40
    assert refused > 40
    assert all(peak(process) < 500 * MIB for process in psutil.Process().children())


def cpu_seconds() -> float:
    """Of this process and its children, those that have ended among them."""
    now = sum(psutil.Process().cpu_times()[:4])
    return now + sum(sum(process.cpu_times()[:2]) for process in psutil.Process().children())


@pytest.mark.long
def test_no_descriptor_is_left() -> None:
    before = psutil.Process().num_fds()
    with Decoder(MANY, limits=TIGHT) as decoder:
        for _ in range(3):
            with pytest.raises(ImageTooCostlyError):
                decoder.decode(strips(500_000), min_side=SIDE)
    assert psutil.Process().num_fds() == before
