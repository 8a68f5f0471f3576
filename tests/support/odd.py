"""Odd image files, always the same: all that Pillow writes, and what accidents make of it."""

import random
import struct
from collections.abc import Iterator
from typing import Final

from PIL import Image

from tests.support.images import encode

_MODES: Final = ("RGB", "RGBA", "L", "LA", "P", "1", "F", "I", "I;16", "CMYK", "YCbCr", "HSV")
# As a header might have them for a width, a height, a count or an offset.
_NUMBERS: Final = (0, 1, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF)
_HEADER: Final = 64


def whole_files() -> dict[str, bytes]:
    """One of each format that Pillow writes, in each mode that it has, by name."""
    Image.init()
    picture = Image.linear_gradient("L").resize((60, 40)).rotate(30)
    files = {}
    for kind in sorted(Image.SAVE.keys() - {"IM"}):  # which Pillow gives up, and warns of
        for mode in _MODES:
            source = "I" if ";" in mode else "RGB" if mode in {"HSV", "YCbCr"} else "L"
            try:
                files[f"{kind} {mode}"] = encode(picture.convert(source).convert(mode), kind)
            except (OSError, ValueError, KeyError):
                continue  # that format has no such mode
    return files


def odd_files() -> Iterator[tuple[str, bytes]]:
    """Files by name: whole, cut, with other bits or numbers, and one's head on another."""
    chance = random.Random(7)
    whole = whole_files()
    for name, content in whole.items():
        yield name, content
        yield f"{name} cut", content[: chance.randrange(1, len(content))]
        for number in range(2):
            changed = bytearray(content)
            for _ in range(1 + number * 20):
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            yield f"{name} bits {number}", bytes(changed)
        other = whole[chance.choice(list(whole))]
        yield f"{name} head", content[:_HEADER] + other[_HEADER:]
        changed = bytearray(content)
        at = chance.randrange(4, max(5, min(_HEADER, len(content) - 4)))
        order = chance.choice("<>")
        changed[at : at + 4] = struct.pack(f"{order}I", chance.choice(_NUMBERS))
        yield f"{name} number", bytes(changed)
