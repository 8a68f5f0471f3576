"""Image files that are small and cost much to decode."""

import re
import struct
import zlib

from PIL import Image

from tests.support.images import encode


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def repeated_scans(side: int, times: int) -> bytes:
    """A progressive JPEG whose second scan comes again and again."""
    content = encode(Image.new("RGB", (side, side), "teal"), "JPEG", progressive=True)
    scans = [found.start() for found in re.finditer(rb"\xff\xda", content)]
    return content[: scans[2]] + content[scans[1] : scans[2]] * times + content[scans[2] :]


def strips(count: int) -> bytes:
    """A grey TIFF of one pixel a row, and a strip for each row."""
    tags = [
        (256, 4, 1, 1),  # width
        (257, 4, 1, count),  # height
        (258, 3, 1, 8),  # bits
        (259, 3, 1, 1),  # not compressed
        (262, 3, 1, 1),  # black is zero
        (273, 4, count, 8),  # where strips begin
        (277, 3, 1, 1),  # samples
        (278, 4, 1, 1),  # rows a strip
        (279, 4, count, 8 + 4 * count),  # bytes a strip
    ]
    numbers = struct.pack("<I", 8) * count + struct.pack("<I", 1) * count
    folder = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(numbers)) + numbers + folder + bytes(4)


def qoi(side: int) -> bytes:
    """A QOI file that has each pixel in full."""
    return (
        b"qoif"
        + struct.pack(">IIBB", side, side, 3, 0)
        + b"\xfe\1\2\3" * side**2
        + bytes(7)
        + b"\1"
    )


def png(width: int, height: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of clear black; `extra` chunks come before the pixels."""
    packer = zlib.compressobj(1)
    rows = bytes(1 + 4 * width) * 64
    pixels = b"".join(packer.compress(rows) for _ in range(-(-height // 64))) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), *extra, (b"IDAT", pixels), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    return content


def many_entries(count: int) -> bytes:
    """EXIF data whose entries each hold all of it."""
    size = 6 + 12 * count
    entries = b"".join(struct.pack("<HHII", 1000 + entry, 7, size, 8) for entry in range(count))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + entries + bytes(4)
