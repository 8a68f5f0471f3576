"""From image files to pixels and thumbnails; what is expected is computed with NumPy."""

import base64
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image, ImageOps, PngImagePlugin

from image_search import images
from image_search.errors import ImageTooLargeError, NotAnImageError
from tests.support.images import encode

Array = NDArray[Any]

MANY: Final = 64_000_000
HEIGHT: Final = 24
WIDTH: Final = 40
_rng = np.random.default_rng(0)
RGBA: Final = _rng.integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
RGB: Final = RGBA[..., :3]
GREY: Final = RGBA[..., 0]
GREY_16: Final = _rng.integers(0, 65536, (HEIGHT, WIDTH), np.uint16)
PALETTE: Final = _rng.integers(0, 256, (256, 3), np.uint8)
# Smooth, because JPEG is lossy.
RAMP: Final = np.indices((HEIGHT, WIDTH)).transpose(1, 2, 0) @ np.array([[4, 0, 2], [1, 5, 2]])


def decode(content: bytes, *, max_pixels: int = MANY, min_side: int = 1000) -> Array:
    image = images.decode(content, max_pixels=max_pixels, min_side=min_side)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def picture(array: Array) -> Image.Image:
    return Image.fromarray(array)


def palette_picture() -> Image.Image:
    image = Image.frombytes("P", (WIDTH, HEIGHT), GREY.tobytes())
    image.putpalette(PALETTE.tobytes())
    return image


def over_white(colours: Array, alpha: Array) -> Array:
    share = alpha[..., np.newaxis] / 255
    return colours * share + 255 * (1 - share)


def three(grey: Array) -> Array:
    return np.repeat(grey[..., np.newaxis], 3, axis=2)


def png(width: int, height: int) -> bytes:
    """A PNG whose header says more than its data."""
    chunks = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data
        chunks += struct.pack(">I", zlib.crc32(kind + data))
    return chunks


def stripes(*colours: tuple[int, ...]) -> Array:
    return np.tile(
        np.repeat(np.array(colours, np.uint8), WIDTH // len(colours), axis=0), (HEIGHT, 1, 1)
    )


CMYK: Final = stripes((0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (9, 9, 9, 255))
CMYK_AS_RGB: Final = stripes(
    (255, 255, 255), (0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)
)
CLEAR: Final = GREY == 128
INDEX_ALPHA: Final = _rng.integers(0, 256, 256, np.uint8)
# By name: the file, the pixels expected.
LOSSLESS: Final[dict[str, tuple[bytes, Array]]] = {
    "1": (encode(picture(GREY > 127), "PNG"), three((GREY > 127) * 255)),
    "L": (encode(picture(GREY), "PNG"), three(GREY)),
    "L with a clear grey": (
        encode(picture(GREY), "PNG", transparency=128),
        three(np.where(CLEAR, 255, GREY)),
    ),
    "LA": (
        encode(picture(RGBA[..., [0, 3]]), "PNG"),
        over_white(three(GREY), RGBA[..., 3]),
    ),
    "P": (encode(palette_picture(), "PNG"), PALETTE[GREY]),
    "P with a clear index": (
        encode(palette_picture(), "GIF", transparency=128),
        np.where(three(CLEAR), 255, PALETTE[GREY]),
    ),
    "P with an alpha for each index": (
        encode(palette_picture(), "PNG", transparency=INDEX_ALPHA.tobytes()),
        over_white(PALETTE[GREY], INDEX_ALPHA[GREY]),
    ),
    "RGB": (encode(picture(RGB), "PNG"), RGB),
    "RGBA": (encode(picture(RGBA), "PNG"), over_white(RGB, RGBA[..., 3])),
    "CMYK": (encode(Image.frombytes("CMYK", (WIDTH, HEIGHT), CMYK.tobytes()), "TIFF"), CMYK_AS_RGB),
    "I;16 PNG": (encode(picture(GREY_16), "PNG"), three(GREY_16 / 257)),
    "I;16 TIFF": (encode(picture(GREY_16), "TIFF"), three(GREY_16 / 257)),
    "I": (encode(picture(GREY_16.astype(np.int32)), "TIFF"), three(GREY_16 / 257)),
    "F to 1": (encode(picture((GREY / 255).astype(np.float32)), "TIFF"), three(GREY)),
    "F to 255": (encode(picture(GREY.astype(np.float32)), "TIFF"), three(GREY)),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_every_mode_becomes_rgb(name: str) -> None:
    content, expected = LOSSLESS[name]
    np.testing.assert_allclose(decode(content), expected, atol=1)


@pytest.mark.parametrize("name", LOSSLESS)
def test_large_pictures_are_averaged_down(name: str) -> None:
    content, expected = LOSSLESS[name]
    blocks = expected.reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(decode(content, min_side=HEIGHT // 2), blocks, atol=2)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_ycbcr_jpeg(options: dict[str, Any]) -> None:
    content = encode(picture(RAMP.astype(np.uint8)), "JPEG", quality=95, **options)
    np.testing.assert_allclose(decode(content), RAMP, atol=6)


def test_cmyk_jpeg() -> None:
    flat = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    np.testing.assert_allclose(decode(encode(flat, "JPEG"))[8, 8], (0, 255, 255), atol=6)


EXACT: Final[dict[str, dict[str, Any]]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}
UPRIGHT: Final = np.repeat(
    np.repeat(np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 250]]]), 32, 0), 48, 1
).astype(np.uint8)
# The picture as it is stored, for each orientation in the EXIF standard.
STORED: Final[dict[int, Callable[[Array], Array]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture(np.ascontiguousarray(STORED[orientation](UPRIGHT)))
    content = encode(stored, kind, exif=exif.tobytes(), **EXACT.get(kind, {}))
    np.testing.assert_allclose(decode(content), UPRIGHT, atol=6)
    # At half the size a JPEG is turned after its decoder has reduced it.
    np.testing.assert_allclose(decode(content, min_side=32), UPRIGHT[::2, ::2], atol=6)


# By name: UPRIGHT as a HEIC file. Pillow's and pi-heif's own writers have no HEVC.
HEIC: Final = {
    "as it is": (
        "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAZdtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAA"
        "AAAAAAAAADRpbG9jAAAAAERAAAIAAQAAAAABuwABAAAAAAAAANkAAgAAAAAClAABAAAAAAAAACQAAAA4aWluZgAAAAAA"
        "AgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAAA1mlwcnAAAAC3"
        "aXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAr"
        "QgEBA3AAAAMAkAAAAwAAAwAeoDCBBZbqSSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNjb2xybmNseAAB"
        "AA0ABoAAAAAUaXNwZQAAAAAAAABgAAAAQAAAABBwaXhpAAAAAAMICAgAAAAXaXBtYQAAAAAAAAABAAEEgQIDBAAAABpp"
        "cmVmAAAAAAAAAA5jZHNjAAIAAQABAAABBW1kYXQAAADVKAGvCeDjSJtRH//97gT//2oX0P9Y/4HmTyL/R0S3/AmI/+iR"
        "PYTK7LZ5yKRMIevd775B7unWArVySIEvD4b8Ach6JiWqBGAHpmvIUn1cqLlYGaq9s1K3fq17Nj3A/utrumQTpKK8t//o"
        "SG8f0e3f/704BSS9WciCAxMIC2ddnyxVxK0ftVnG5lRXijxPj+kvLhcOzbvAvlLq4ohyxOhdU0J++yMSbfNt5Tozdx/u"
        "buVbfK7L/jiRt4ls0D7J8aNvt/8CT3SySCD7hfE1YcK4Cf//gI/8AAAABkV4aWYAAE1NACoAAAAIAAEBEgADAAAAAQAB"
        "AAAAAAAA"
    ),
    "turned by its EXIF data": (
        "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAaFtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAA"
        "AAAAAAAAADRpbG9jAAAAAERAAAIAAQAAAAABxQABAAAAAAAAAPgAAgAAAAACvQABAAAAAAAAACQAAAA4aWluZgAAAAAA"
        "AgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAAA4GlwcnAAAADA"
        "aXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAr"
        "QgEBA3AAAAMAkAAAAwAAAwAeoCCBhZbqSSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNjb2xybmNseAAB"
        "AA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAYAAAABBwaXhpAAAAAAMICAgAAAAJaXJvdAMAAAAYaXBtYQAAAAAAAAABAAEF"
        "gQIDBIUAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAASRtZGF0AAAA9CgBrwngITl1X1/4aX//+lEv//yUG1nnn891"
        "rnf0zmt/7j7OqFEf/5oUQHsc93/JoCShBIIFlgWv5xtpKC6/Jq0dteQn04M+0ZbJvrXh2tdJ/u9/eu4lifZWGSsVzuIJ"
        "D15OmLM5oGRAxvrFXUkFs6HMelptWwkpPMjUUUi6BjV5zfP/u6Xh+5u/ft8foR3KQP0R3LuCuokcu0acc4cDemWsh/aY"
        "tPZYkmxXZ472cz/SPIG/81EgVAkGkLdcn/qr3gMQDrTcMiSpeH9qzEhVwZvIFXv4WFU5l5p2zyJoT1ySsCVCB6aDQCyb"
        "li/C1H+FCK9Qu2MAAAAGRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAA="
    ),
    "10 bits a colour": (
        "AAAAHGZ0eXBoZWl4AAAAAG1pZjFoZWl4bWlhZgAAAVNtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAA"
        "AAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABdwABAAAAAAAAAHgAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABo"
        "dmMxAAAAAA5waXRtAAAAAAABAAAA02lwcnAAAAC0aXBjbwAAAHVodmNDAQQIAAAAnbgAAAAAHvAA/P36+gAADwNgAAEA"
        "F0ABDAH//wQIAAADAJ24AAADAAAeugJAYQABAClCAQEECAAAAwCduAAAAwAAHqAwgQTZbqSSmubgIaDAgAAADIAAAAMA"
        "hGIAAQAHRAHBcrAiQAAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABgAAAAQAAAABBwaXhpAAAAAAMKCgoA"
        "AAAXaXBtYQAAAAAAAAABAAEEgQIDBAAAAIBtZGF0AAAAdCgBrwng44Ocvef//vO3//+/t3kP7ByykglJ5+LMcf9+qv//"
        "HxoaZZS+DaH3Fn7deMdaQhq7Rws1cv//Q25Uf5Oetf/d3q3E463/+Sqsv6SUhe5EQdQUg8eAUSJ1njIYCqTdtzBIWcAw"
        "M+k9DfuVA7IMGx5h"
    ),
}


@pytest.mark.parametrize("name", HEIC)
def test_heic(name: str) -> None:
    pixels = decode(base64.b64decode(HEIC[name]))
    # Within the four quarters; colours bleed at their borders.
    inner = np.s_[[8, 16, 24, 40, 48, 56]]
    np.testing.assert_allclose(
        pixels[inner][:, [16, 24, 32, 64, 72, 80]],
        UPRIGHT[inner][:, [16, 24, 32, 64, 72, 80]],
        atol=20,
    )


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1", "I;16"])
def test_bands_of_a_turned_picture_are_those_of_the_whole(
    mode: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_BAND_PIXELS", 300)
    colours = _rng.integers(0, 256, (61, 97, 4), np.uint8)
    image = picture(colours if mode != "I;16" else colours[..., :2].copy().view(np.uint16)[..., 0])
    image = image if mode == "I;16" else image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    small = decode(encode(image, "PNG", exif=exif.tobytes()), min_side=20)
    image.getexif()[0x0112] = orientation
    whole = ImageOps.exif_transpose(image)
    if mode == "I;16":
        values = np.asarray(whole.convert("I").reduce(3), np.float32) / np.float32(257)
        expected = three(values.round())
    else:
        reduced = whole.convert("RGBA").reduce(3)
        white = Image.new("RGBA", reduced.size, "white")
        expected = np.asarray(Image.alpha_composite(white, reduced))[..., :3].astype(int)
    np.testing.assert_array_equal(small, expected)


@pytest.mark.parametrize(("min_side", "width"), [(500, 800), (100, 200), (20, 34)])
def test_a_large_jpeg_2000_is_decoded_without_its_finest_levels(
    min_side: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient = Image.linear_gradient("L").resize((800, 600))
    image = Image.merge("RGB", [gradient, gradient.rotate(180), gradient])
    content = encode(image, "JPEG2000")
    monkeypatch.setattr(images, "_MOST_JPEG_2000_PIXELS", 10_000)
    decoded = images.decode(content, max_pixels=MANY, min_side=min_side)
    assert decoded.width == width
    whole = np.asarray(image.resize(decoded.size, Image.Resampling.BOX)).astype(int)
    np.testing.assert_allclose(np.asarray(decoded).astype(int), whole, atol=6)


@pytest.mark.slow
def test_a_very_long_picture_comes_back_bounded() -> None:
    small = decode(encode(Image.new("RGB", (100_000, 300), "teal"), "PNG"), min_side=256)
    np.testing.assert_array_equal(small, np.full((300, 14286, 3), (0, 128, 128)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_does_not_cost_the_picture(kind: str) -> None:
    content = encode(Image.new("RGB", (20, 10), "red"), kind, exif=b"Exif\0\0MM\0*")
    np.testing.assert_allclose(decode(content), np.full((10, 20, 3), (255, 0, 0)), atol=3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_many(kind: str) -> None:
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "blue", "lime")]
    options = {"save_all": True, "append_images": frames[1:], **EXACT.get(kind, {})}
    content = encode(frames[0], kind, **options)
    np.testing.assert_array_equal(decode(content), np.full((12, 16, 3), (255, 0, 0)))


@pytest.mark.parametrize("size", [(2000, 1600), (1600, 2003), (257, 4000), (511, 512), (300, 255)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_reduced_by_whole_factors_but_not_below_the_side(kind: str, size: tuple[int, int]) -> None:
    gradient = Image.linear_gradient("L").resize(size)
    full = Image.merge("RGB", [gradient, gradient.rotate(180), gradient])
    small = decode(encode(full, kind), min_side=256)
    shorter = min(small.shape[:2])
    assert min(256, *size) <= shorter < 2 * 256
    assert small.shape[1] / small.shape[0] == pytest.approx(size[0] / size[1], rel=0.02)
    # The full-size picture, resized by another filter, is the same picture.
    whole = np.asarray(full.resize(small.shape[1::-1], Image.Resampling.BOX)).astype(int)
    np.testing.assert_allclose(small, whole, atol=8)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (3, 2)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_tiny_and_thin_pictures(kind: str, size: tuple[int, int]) -> None:
    content = encode(Image.new("RGB", size, (200, 100, 50)), kind)
    pixels = decode(content, min_side=32)
    np.testing.assert_allclose(pixels, np.full((*size[::-1], 3), (200, 100, 50)), atol=4)
    with Image.open(io.BytesIO(images.thumbnail(picture(pixels.astype(np.uint8))))) as small:
        assert small.size == (min(size[0], 240), min(size[1], 240))


PNG: Final = LOSSLESS["RGB"][0]
JPEG: Final = encode(picture(RGB), "JPEG")


NAN: Final = encode(picture(np.full((4, 4), np.nan, np.float32)), "TIFF")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"not an image\n" * 99, "not an image in", id="text"),
        pytest.param(np.random.default_rng(1).bytes(5000), "not an image in", id="random"),
        pytest.param(PNG[:20], "damaged", id="part of a PNG header"),
        pytest.param(JPEG[:20], "not an image in", id="JPEG header"),
        pytest.param(PNG[:33], "not an image in", id="PNG header"),
        pytest.param(PNG[: len(PNG) // 2], "damaged", id="half PNG"),
        pytest.param(JPEG[: len(JPEG) // 2], "damaged", id="half JPEG"),
        pytest.param(JPEG[:-200], "damaged", id="JPEG without its end"),
        pytest.param(png(50, 50), "damaged", id="PNG without its pixels"),
        pytest.param(PNG[:60] + bytes(200) + PNG[260:], "damaged", id="PNG with a hole"),
        pytest.param(NAN, "not finite", id="not a number"),
    ],
)
def test_not_an_image(content: bytes, message: str) -> None:
    with pytest.raises(NotAnImageError, match=message):
        decode(content, min_side=8)


def test_no_program_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pillow hands PostScript to Ghostscript, which nobody should reach with an upload.
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch '{tmp_path}/was-run'\nexit 1\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(NotAnImageError):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    assert not (tmp_path / "was-run").exists()


def test_no_format_is_opened_that_holds_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An IPTC file of Pillow's plugin, whose picture is PostScript.
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch '{tmp_path}/was-run'\nexit 1\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"

    def record(number: int, data: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, 3 if number < 200 else 8, number & 0x7F, len(data)) + data

    fields = {20: b"\0\x09", 30: b"\0\x09", 60: b"\1\0", 65: b"\0", 120: b"\1"}
    content = b"".join(record(number, data) for number, data in fields.items())
    content += struct.pack(">BBBH", 0x1C, 8, 10, len(postscript)) + postscript
    with Image.open(io.BytesIO(content), formats=["IPTC"]) as image:
        assert image.size == (9, 9)  # it is what that plugin takes
    with pytest.raises(NotAnImageError, match=r"an IPTC file.*export it as JPEG"):
        decode(content)
    assert not (tmp_path / "was-run").exists()
    assert not images.file_suffixes() & {".iim", ".eps", ".ps", ".wmf", ".emf", ".mpg", ".h5"}
    assert images.file_suffixes() >= {".jpg", ".png", ".heic", ".mpo", ".webp", ".avif", ".tif"}


def reduced_first(content: bytes) -> bytes:
    """A TIFF file that says that its first picture is a reduced one, as RAW files do."""
    with Image.open(io.BytesIO(content)) as image:
        return encode(image, "TIFF", tiffinfo={254: 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"%PDF-1.7 " * 50, "a PDF file.*export"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"\xff\x0a" + bytes(99), "a JPEG XL file"),
        (b"\0\0\0\x18ftypcrx \0\0" + bytes(99), "RAW.*export it as JPEG"),
        (b"\0\0\0\x18ftypisom" + bytes(99), "a video"),
        (reduced_first(LOSSLESS["RGB"][0]), "RAW.*export it as JPEG"),
        (b"no picture at all " * 9, "not an image in a format that can be read: send it as JPEG"),
    ],
)
def test_what_is_left_out_says_what_to_do(content: bytes, message: str) -> None:
    with pytest.raises(NotAnImageError, match=message):
        decode(content)


NOISE: Final = picture(_rng.integers(0, 256, (320, 240, 3), np.uint8)).resize((480, 640))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("missing", [2, 3, 60])
def test_a_jpeg_without_its_last_bytes_is_read(missing: int, options: dict[str, Any]) -> None:
    content = encode(NOISE, "JPEG", **options)
    np.testing.assert_allclose(decode(content[:-missing])[:-40], decode(content)[:-40], atol=40)


@pytest.mark.parametrize(("options", "part"), [({}, 0.9), ({"progressive": True}, 0.2)])
def test_a_jpeg_that_lacks_more_is_damaged(part: float, options: dict[str, Any]) -> None:
    content = encode(NOISE, "JPEG", **options)
    with pytest.raises(NotAnImageError, match="damaged"):
        decode(content[: int(part * len(content))])


def test_large_profiles_and_texts_of_a_png_do_not_cost_the_picture() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "long " * 400_000, zip=True)
    content = encode(picture(RGB), "PNG", icc_profile=bytes(3_000_000), pnginfo=texts)
    np.testing.assert_array_equal(decode(content), RGB)


def test_pixel_limit() -> None:
    assert decode(PNG, max_pixels=HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageTooLargeError, match=r"40x24.*959"):
        decode(PNG, max_pixels=HEIGHT * WIDTH - 1)


@pytest.mark.parametrize(("side", "max_pixels"), [(10_000, MANY), (30_000, MANY), (30_000, 10**12)])
def test_decompression_bomb(side: int, max_pixels: int) -> None:
    # Pillow only warns of the smallest, and somebody may have turned warnings off.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageTooLargeError, match=r"too large|more than 64,000,000 pixels"):
            decode(png(side, side), max_pixels=max_pixels)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((720, 180), (240, 60)), ((180, 720), (60, 240)), ((241, 241), (240, 240)), ((9, 5), (9, 5))],
)
def test_thumbnail(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (200, 30, 60))
    with Image.open(io.BytesIO(images.thumbnail(image))) as small:
        assert (small.format, small.mode, small.size) == ("JPEG", "RGB", expected)
        colours = np.asarray(small).astype(int)
    np.testing.assert_allclose(colours, np.full((*expected[::-1], 3), (200, 30, 60)), atol=6)
    assert image.size == size


@pytest.mark.parametrize(("kind", "length"), [("JPEG", 60_000), ("GIF", 200_000)])
def test_thumbnail_leaves_comments_behind(kind: str, length: int) -> None:
    content = encode(Image.new("RGB", (30, 30), "navy"), kind, comment=b"x" * length)
    image = images.decode(content, max_pixels=MANY, min_side=32)
    assert len(images.thumbnail(image)) < 5000
