"""Which image files are small and plain, as their first bytes tell; without decoding them.

Such a file costs its decoder little, whatever its maker intended: at most some hundred milliseconds
and some ten MiB. What is in doubt is not plain.
"""

import struct
from typing import Final

# What is decoded to pixels; a JPEG that is reduced while it is decoded may have more.
_MOST_PIXELS: Final = 4_000_000
# Of a sequential JPEG, and of a progressive one times its scans.
_MOST_JPEG_PIXELS: Final = 40_000_000
# Of the formats that people seldom send; also the most bytes of such a file.
_FEW_PIXELS: Final = 1_000_000
_MOST_HEADER_BYTES: Final = 512 * 1024
_MOST_SEGMENTS: Final = 200
_MOST_CHUNKS: Final = 5000
# Texts and profiles are unpacked, to a thousand times as many bytes.
_MOST_PACKED_BYTES: Final = 16 * 1024
# Each entry of a folder of TIFF may hold as many bytes as the whole.
_MOST_TIFF_ENTRIES: Final = 64


def is_plain(content: bytes, min_side: int) -> bool:
    """Whether `images.decode` takes little to decode `content` to `min_side`."""
    try:
        if content.startswith(b"\xff\xd8\xff"):
            return _plain_jpeg(content, min_side)
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            return _plain_png(content)
        if len(content) > _FEW_PIXELS:
            return False
        if content.startswith((b"GIF87a", b"GIF89a")):
            return _plain_gif(content)
        if content.startswith(b"RIFF"):
            return _plain_webp(content)
        return content.startswith(b"BM") and _plain_bmp(content)
    except (struct.error, IndexError):  # it ends in its header
        return False


def _plain_jpeg(content: bytes, min_side: int) -> bool:
    """One scan, or few for its size; markers as in ITU-T T.81, B.1.1."""
    at = 2
    folders = 0
    components = pixels = 0
    progressive = False
    for _ in range(_MOST_SEGMENTS):
        start, marker, length = struct.unpack_from(">BBH", content, at)
        segment = at + 4
        if start != 0xFF or length < 2 or at > _MOST_HEADER_BYTES:
            return False
        if marker in {0xC0, 0xC1, 0xC2}:
            progressive = marker == 0xC2
            _, height, width, components = struct.unpack_from(">BHHB", content, segment)
            pixels = width * height
            factor = max(1, min(width, height) // min_side)
            scale = next(scale for scale in (8, 4, 2, 1) if scale <= factor)
            if pixels // scale**2 > _MOST_PIXELS:
                return False
        elif marker == 0xDA:
            if not pixels:
                return False
            if not progressive:
                # With all components in the first scan, no other is read.
                return content[segment] == components and pixels <= _MOST_JPEG_PIXELS
            if pixels > _MOST_PIXELS:  # it is held whole, as coefficients
                return False
            end = content.find(b"\xff\xd9", at)
            scans = content.count(b"\xff\xda", at, end if end >= 0 else len(content))
            return pixels * scans <= _MOST_JPEG_PIXELS
        elif marker in {0xE1, 0xE2}:
            head = content[segment : segment + 16].partition(b"\0")[0]
            if head in {b"Exif", b"MPF"}:
                folders += 1
                skipped = segment + len(head) + (2 if head == b"Exif" else 1)
                if folders > 2 or not _few_entries(content[skipped : segment - 2 + length]):
                    return False
        # Tables, application data and comments; other frames and restarts are not plain.
        elif marker not in {0xC4, 0xDB, 0xDD, 0xFE} and not 0xE0 <= marker <= 0xEF:
            return False
        at += 2 + length
    return False


def _plain_png(content: bytes) -> bool:
    """Few pixels, and little that is packed besides; chunks as in the PNG specification, 11."""
    width, height = struct.unpack_from(">II", content, 16)
    if content[12:16] != b"IHDR" or width * height > _MOST_PIXELS:
        return False
    at = 8
    packed = 0
    for _ in range(_MOST_CHUNKS):
        length, kind = struct.unpack_from(">I4s", content, at)
        if kind == b"IEND":
            return True
        if kind in {b"iCCP", b"zTXt", b"iTXt", b"tEXt"}:
            packed += length
            # ImageMagick keeps EXIF data so, and its size is known once it is unpacked.
            if packed > _MOST_PACKED_BYTES or content.startswith(b"Raw profile", at + 8):
                return False
        elif kind == b"eXIf" and not _few_entries(content[at + 8 : at + 8 + length]):
            return False
        at += 12 + length
    return False


def _plain_gif(content: bytes) -> bool:
    """Few pixels in the first frame; blocks as in the GIF89a specification."""
    right, bottom, flags = struct.unpack_from("<HHB", content, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    for _ in range(_MOST_SEGMENTS):
        if content[at] == ord(","):
            left, top, width, height = struct.unpack_from("<HHHH", content, at + 1)
            right, bottom = max(right, left + width), max(bottom, top + height)
            return bool(right * bottom <= _FEW_PIXELS)
        if content[at] != ord("!"):
            return False
        at += 2
        while content[at]:
            at += 1 + content[at]
        at += 1
    return False


def _plain_webp(content: bytes) -> bool:
    """Few pixels in the simple layouts, which hold nothing else."""
    size = webp_size(content)
    return content[12:16] != b"VP8X" and size is not None and size[0] * size[1] <= _FEW_PIXELS


def webp_size(content: bytes) -> tuple[int, int] | None:
    """Width and height in the header of a WebP file (RFC 9649, 2.5 to 2.7); None for others."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP" or len(content) < 30:
        return None
    match content[12:16]:
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", content, 26)
            return width & 0x3FFF, height & 0x3FFF
        case b"VP8L":
            [sides] = struct.unpack_from("<I", content, 21)
            return (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
        case b"VP8X":
            width, height = (int.from_bytes(content[at : at + 3], "little") for at in (24, 27))
            return width + 1, height + 1
    return None


def _plain_bmp(content: bytes) -> bool:
    """Few pixels, which are not packed; BITMAPINFOHEADER of Windows and later."""
    header, width, height, _, _, compression = struct.unpack_from("<IiiHHI", content, 14)
    return bool(header >= 40 and compression == 0 and abs(width * height) <= _FEW_PIXELS)


def _few_entries(tiff: bytes) -> bool:
    """Whether a TIFF folder, as EXIF data is one, has few entries; TIFF 6.0, section 2."""
    if tiff.startswith(b"Exif\0\0"):
        tiff = tiff[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return False
    [first] = struct.unpack_from(order + "I", tiff, 4)
    [entries] = struct.unpack_from(order + "H", tiff, first)
    return bool(entries <= _MOST_TIFF_ENTRIES)
