"""From the bytes of an image file to pixels, and to a thumbnail."""

import io
import re
import struct
import warnings
from collections.abc import Iterator
from typing import Final

import numpy as np
import pi_heif
from PIL import AvifImagePlugin, ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from image_search.errors import ImageTooLargeError, NotAnImageError
from image_search.file_metadata import read_file_metadata
from image_search.values import MOST_PIXELS

# As wide as the page shows it. What sides and qualities cost: python -m benchmarks.thumbnails
THUMBNAIL_SIDE: Final = 240
_THUMBNAIL_QUALITY: Final = 75
# Of a picture that is shown larger than it is, each pixel counts.
_SMALL_PICTURE_QUALITY: Final = 85
_WHITE: Final = (255, 255, 255, 255)
# The longer side of a decoded image; only images more than 32 times as long as wide come near.
_LONGEST_SIDE: Final = 16_384
# Above it a JPEG 2000 is decoded at a half of its size, or a quarter.
_MOST_JPEG_2000_PIXELS: Final = 16_000_000
# Large images are converted in bands of so many pixels, so that no second copy is needed.
_BAND_PIXELS: Final = 2 * 1024 * 1024

Image.init()
pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
# Each decoder runs in one thread: images beside each other use the cores as well, and the memory
# and time of one image do not depend on the machine.
pi_heif.options.DECODE_THREADS = 1
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# Profiles and texts that Pillow takes for bombs occur in honest files.
PngImagePlugin.MAX_TEXT_CHUNK = 64 * 1024 * 1024
# Pillow warns between one and two times its limit; a warning does not stop a bomb.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS
warnings.simplefilter("error", Image.DecompressionBombWarning)
# What is damaged in EXIF data is left out, which nobody needs to be told.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

# Formats that decode themselves. Left out are those whose plugin hands what it holds to any other
# plugin (IPTC) or to a program (EPS, WMF), that are recognised but not decoded (BUFR, GRIB, HDF5,
# MPEG), that any file could be taken for (IMT, MCIDAS, SPIDER, XVTHUMB), and that Pillow gives up
# (IM).
_FORMATS: Final = sorted(
    Image.OPEN.keys()
    & {
        *("AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FTEX", "GBR", "GIF"),
        *("HEIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MSP", "PCD", "PCX", "PIXAR", "PNG"),
        *("PPM", "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM"),
    }
)
_SUFFIXES: Final = {
    suffix
    for suffix, format_ in Image.registered_extensions().items()
    if format_ in {*_FORMATS, "MPO"}  # MPO is JPEG with further pictures behind the first
}
_AS_JPEG: Final = "export it as JPEG or PNG"
_RAW: Final = f"a camera's RAW file, which cannot be read: {_AS_JPEG}"
# What people try to use as an image: how its bytes begin, and what to do.
_NOT_READ: Final = (
    (rb"%!PS|\xc5\xd0\xd3\xc6", f"a PostScript file, which cannot be read: {_AS_JPEG}"),
    (rb"\x1c[\x01\x02\x03]", f"an IPTC file, which cannot be read: {_AS_JPEG}"),
    (rb"%PDF-", f"a PDF file, which cannot be read: {_AS_JPEG}"),
    (rb"\s*(<\?xml.{,500}?)?<svg", f"an SVG drawing, which cannot be read: {_AS_JPEG}"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", f"a JPEG XL file, which cannot be read: {_AS_JPEG}"),
    (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", f"a metafile, which cannot be read: {_AS_JPEG}"),
    # Canon, Fujifilm, Olympus, Panasonic, Sigma, Minolta.
    (rb"II\*\0.{4}CR|....ftypcrx|FUJIFILMCCD-RAW|II(RO|RS|U)|MMOR|FOVb|\0MRM", _RAW),
    (
        rb"....ftyp(isom|mp4|qt|M4V)|\x1aE\xdf\xa3|\0\0\x01[\xb3\xba]",
        "a video: send one of its frames as a picture",
    ),
)
_TIFF_NEW_SUBFILE_TYPE: Final = 254
_TIFF_REDUCED: Final = 1
_TIFF_DNG_VERSION: Final = 50706

# How a stored picture becomes upright, by its EXIF orientation.
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE: Final = {5, 6, 7, 8}
# Where an upright picture's first rows are the stored one's last rows or columns.
_FROM_THE_END: Final = {3, 4, 7, 8}

# At most a sixteenth of a JPEG's rows may be missing at its end.
_MISSING_ROWS: Final = 16
_LAST_COEFFICIENT: Final = 63


def decode(content: bytes, *, max_pixels: int, min_side: int) -> Image.Image:
    """Decode an image file to an upright RGB picture, without its alpha and animation.

    Transparency is laid over white, and of an animation the first frame is taken. Large pictures
    come back reduced by a whole factor, so far that the shorter side keeps at least `min_side`
    pixels: it bounds memory and time, and what follows resizes to less anyway. A JPEG file that
    ends early is read if it has at least fifteen sixteenths of its rows or, if it is progressive,
    each coefficient once; what is missing is grey, or blurred. The picture's `info` has the fields
    of `image_search.file_metadata` and nothing else.

    It may cost what the file's header asks for; `image_search.decoding` bounds that.

    Raises NotAnImageError if `content` is not an image in a format that can be read,
    ImageTooLargeError if the image has more than `max_pixels` pixels.
    """
    if not content:
        raise NotAnImageError("the file is empty: send the bytes of an image")
    try:
        try:
            return _decode(content, max_pixels, min_side)
        except OSError:
            whole = _without_missing_end(content)
            if whole is None:
                raise
            return _decode(whole, max_pixels, min_side)
    except (ImageTooLargeError, NotAnImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise ImageTooLargeError(f"the image is too large: {exc}") from exc
    except UnidentifiedImageError as exc:
        raise NotAnImageError(_unidentified(content)) from exc
    # Pillow's decoders raise almost any type on damaged input.
    except Exception as exc:
        raise NotAnImageError(f"the image is damaged or not supported: {exc}") from exc


def thumbnail(image: Image.Image) -> bytes:
    """A JPEG of at most 240x240 pixels of an RGB image, without its comments and profiles."""
    quality = _SMALL_PICTURE_QUALITY
    if max(image.size) > THUMBNAIL_SIDE:
        image = image.copy()
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        quality = _THUMBNAIL_QUALITY
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, comment=b"", icc_profile=None, exif=b"")
    return out.getvalue()


def file_suffixes() -> set[str]:
    """The suffixes of the files that can be decoded, in lower case, with the dot."""
    return set(_SUFFIXES)


def _decode(content: bytes, max_pixels: int, min_side: int) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        _check_size(image, max_pixels)
        _check_kind(image)
        width, height = image.size
        factor = max(1, min(width, height) // min_side)
        # JPEG decodes at 1/2, 1/4 or 1/8 of its size at a fraction of the cost.
        image.draft(None, (width // factor, height // factor))
        levels = _levels_left_out(image, min_side)
        if levels:
            image.reduce = levels  # type: ignore[method-assign, assignment]
        image.load()
        if levels:
            image.reduce = 0  # type: ignore[method-assign, assignment]  # the method again
        # A decoder may find another size than the header said.
        _check_size(image, max_pixels)
        factor = max(1, min(image.size) // min_side)
        upright = _upright_rgb(image, factor)
        shown = (height, width) if _orientation(image) in _ON_ITS_SIDE else (width, height)
        upright.info.clear()
        upright.info.update(read_file_metadata(image, shown, content))
        return upright


def _levels_left_out(image: Image.Image, min_side: int) -> int:
    """How often a JPEG 2000 is halved while it is decoded, as its decoder holds it many times."""
    levels = 0
    width, height = image.size
    if image.format == "JPEG2000":
        while (
            width * height >> 2 * levels > _MOST_JPEG_2000_PIXELS
            and min(width, height) >> levels + 1 >= min_side
        ):
            levels += 1
    return levels


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"the image is {width}x{height}, which is more than {max_pixels:,} pixels: "
            "make it smaller"
        )


def _check_kind(image: Image.Image) -> None:
    """Refuse RAW files that are TIFF files, too: what they show to others is a small preview."""
    tags = getattr(image, "tag_v2", {})
    if image.format == "TIFF" and (
        _TIFF_DNG_VERSION in tags or tags.get(_TIFF_NEW_SUBFILE_TYPE) == _TIFF_REDUCED
    ):
        raise NotAnImageError(_RAW)


def _unidentified(content: bytes) -> str:
    for pattern, what in _NOT_READ:
        if re.match(pattern, content[:1024], re.DOTALL):
            return f"this is {what}"
    return "not an image in a format that can be read: send it as JPEG or PNG"


# --- from a decoder's picture to upright RGB ---


def _upright_rgb(image: Image.Image, factor: int) -> Image.Image:
    """Convert, turn and reduce by `factor`, in bands: a large picture is never copied whole."""
    orientation = _orientation(image)
    width, height = image.size[::-1] if orientation in _ON_ITS_SIDE else image.size
    factors = (_long_factor(width, factor), _long_factor(height, factor))
    numbers = image.mode.startswith(("I", "F"))
    mode = ("F" if image.mode == "F" else "I") if numbers else "RGB"
    transparent = not numbers and image.has_transparency_data

    def reduced(top: int, bottom: int) -> Image.Image:
        band = _to_mode(_band(image, orientation, top, bottom), transparent=transparent)
        if orientation in _UPRIGHT:
            band = band.transpose(_UPRIGHT[orientation])
        if factors != (1, 1):
            band = band.reduce(factors)
        if transparent:
            band = Image.alpha_composite(Image.new("RGBA", band.size, _WHITE), band)
        return band.convert(mode)

    bands = list(_bands(width, height, factors[1]))
    if len(bands) == 1:
        upright = reduced(*bands[0])
    else:
        upright = Image.new(mode, (-(-width // factors[0]), -(-height // factors[1])))
        for top, bottom in bands:
            upright.paste(reduced(top, bottom), (0, top // factors[1]))
    if numbers:
        return _to_8_bit(upright, sixteen_bit=image.mode.startswith("I;16")).convert("RGB")
    return upright


def _long_factor(side: int, factor: int) -> int:
    """A multiple of `factor` that leaves no more than the longest side there may be."""
    return factor * -(-side // (factor * _LONGEST_SIDE))


def _bands(width: int, height: int, factor: int) -> Iterator[tuple[int, int]]:
    rows = factor * max(1, _BAND_PIXELS // (width * factor))
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def _band(image: Image.Image, orientation: int, top: int, bottom: int) -> Image.Image:
    """What becomes the rows `top` to `bottom` of the upright picture, as it is stored."""
    width, height = image.size
    rows = width if orientation in _ON_ITS_SIDE else height
    if (top, bottom) == (0, rows):
        return image
    if orientation in _FROM_THE_END:
        top, bottom = rows - bottom, rows - top
    if orientation in _ON_ITS_SIDE:
        return image.crop((top, 0, bottom, height))
    return image.crop((0, top, width, bottom))


def _to_mode(image: Image.Image, *, transparent: bool) -> Image.Image:
    """In a mode that can be turned and reduced without a loss."""
    if transparent:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    if image.mode.startswith("I;16"):
        return image.convert("I")
    if image.mode in {"1", "P"}:
        return image.convert("RGB")
    return image


def _to_8_bit(image: Image.Image, *, sixteen_bit: bool) -> Image.Image:
    """Scale 16-bit grey (0..65535), or float grey in 0..1 or 0..255, to 0..255."""
    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise NotAnImageError("the image has values that are not finite numbers")
    if image.mode == "F":
        values = values * np.float32(255) if values.max() <= 1 else values
    elif sixteen_bit or values.max() > 255:
        values = values / np.float32(257)
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    # Pillow raises almost any type on damaged EXIF data, which is no reason to refuse the picture.
    except Exception:
        return 1
    return orientation if orientation in _UPRIGHT else 1


# --- JPEG files that end early ---


def _without_missing_end(content: bytes) -> bytes | None:
    """A JPEG file that lacks little of its end, with an end; None for all others."""
    frame = content.startswith(b"\xff\xd8") and _frame(content)
    if not frame:
        return None
    start, progressive = frame
    # A reader that meets the end of the image early makes up what is missing.
    ended = content + b"\xff\xd9"
    if progressive:
        return ended if _all_coefficients(content, start) else None
    [height] = struct.unpack_from(">H", content, start + 5)
    shown = struct.pack(">H", height - height // _MISSING_ROWS)
    try:
        with Image.open(io.BytesIO(content[: start + 5] + shown + content[start + 7 :])) as image:
            image.draft(None, (1, 1))
            image.load()
    except OSError:
        return None
    return ended


def _frame(content: bytes) -> tuple[int, bool] | None:
    """Where a JPEG's frame header begins, and whether it is progressive (ITU-T T.81, B.2.2)."""
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        if content[at + 1] in {0xC0, 0xC1, 0xC2}:
            return at, content[at + 1] == 0xC2
        at += 2 + int.from_bytes(content[at + 2 : at + 4])
    return None


def _all_coefficients(content: bytes, frame: int) -> bool:
    """Whether scans before the last reach each component's last coefficient (T.81, B.2.3)."""
    components = set(content[frame + 10 : frame + 10 + 3 * content[frame + 9] : 3])
    scans = [found.start() for found in re.finditer(rb"\xff\xda", content)]
    for scan in scans[:-1]:
        selectors = scan + 5
        spectrum = selectors + 2 * content[scan + 4]
        if content[spectrum + 1] == _LAST_COEFFICIENT:
            components -= set(content[selectors:spectrum:2])
    return not components
