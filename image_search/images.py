"""From the bytes of an image file to pixels, and to a thumbnail."""

import io
import warnings
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from image_search.errors import ImageTooLargeError, NotAnImageError

THUMBNAIL_SIDE: Final = 128
_THUMBNAIL_QUALITY: Final = 85
_WHITE: Final = (255, 255, 255, 255)

Image.init()
# EPS would run Ghostscript, and the others are recognised by Pillow but not decoded.
_FORMATS: Final = sorted(Image.OPEN.keys() - {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"})

# Pillow warns between one and two times its limit; a warning does not stop a bomb.
warnings.simplefilter("error", Image.DecompressionBombWarning)


def decode(content: bytes, *, max_pixels: int, min_side: int) -> Image.Image:
    """Decode an image file to an upright RGB picture, without its alpha and animation.

    Transparency is laid over white, and of an animation the first frame is taken. Large pictures
    come back reduced by a whole factor, so far that the shorter side keeps at least `min_side`
    pixels: it bounds memory and time, and what follows resizes to less anyway.

    Raises NotAnImageError if Pillow cannot read `content`, ImageTooLargeError if the image has
    more than `max_pixels` pixels.
    """
    if not content:
        raise NotAnImageError("the file is empty: send the bytes of an image")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _check_size(image, max_pixels)
            width, height = image.size
            factor = max(1, min(width, height) // min_side)
            # JPEG decodes at 1/2, 1/4 or 1/8 of its size at a fraction of the cost.
            image.draft(None, (width // factor, height // factor))
            image.load()
            factor = max(1, min(image.size) // min_side)
            return _to_rgb(_upright(image), factor)
    except (ImageTooLargeError, NotAnImageError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise ImageTooLargeError(f"the image is too large: {exc}") from exc
    except UnidentifiedImageError as exc:
        raise NotAnImageError("not an image in a format that can be read") from exc
    # Pillow's decoders raise almost any type on damaged input.
    except Exception as exc:
        raise NotAnImageError(f"the image is damaged or not supported: {exc}") from exc


def thumbnail(image: Image.Image) -> bytes:
    """A JPEG of at most 128x128 pixels of an RGB image, without its comments and profiles."""
    if max(image.size) > THUMBNAIL_SIDE:
        image = image.copy()
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_THUMBNAIL_QUALITY, comment=b"", icc_profile=None, exif=b"")
    return out.getvalue()


def file_suffixes() -> set[str]:
    """The suffixes of the files that can be decoded, in lower case, with the dot."""
    return {
        suffix for suffix, format_ in Image.registered_extensions().items() if format_ in _FORMATS
    }


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"the image is {width}x{height}, which is more than {max_pixels:,} pixels: "
            "make it smaller"
        )


def _to_rgb(image: Image.Image, factor: int) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _to_8_bit(image, factor).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA").reduce(factor)
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    if image.mode in {"1", "P"}:
        image = image.convert("RGB")
    return image.reduce(factor).convert("RGB")


def _to_8_bit(image: Image.Image, factor: int) -> Image.Image:
    """Reduce, and scale 16-bit grey (0..65535), or float grey in 0..1 or 0..255, to 0..255."""
    sixteen_bit = image.mode.startswith("I;16")
    if sixteen_bit:
        image = image.convert("I")  # which can be reduced
    values = np.asarray(image.reduce(factor), dtype=np.float32)
    if not np.isfinite(values).all():
        raise NotAnImageError("the image holds values that are not finite numbers")
    if image.mode == "F":
        values = values * np.float32(255) if values.max() <= 1 else values
    elif sixteen_bit or values.max() > 255:
        values = values / np.float32(257)
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    # Pillow raises almost any type on damaged EXIF data, which is no reason to refuse the picture.
    except Exception:
        return image
