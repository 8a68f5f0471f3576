"""Text and pictures on a terminal."""

import base64
import io
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from PIL import Image

Protocol: TypeAlias = Literal["iterm", "kitty", "blocks"]

# A character is about twice as high as wide, so this is a square.
_COLUMNS: Final = 16
_LINES: Final = 8
# Pixels of a terminal's cell, where the terminal itself scales the picture.
_CELL: Final = (10, 20)
# The kitty protocol's limit for one escape sequence.
_KITTY_CHUNK: Final = 4096


def printable(text: str) -> str:
    """Text that the service or a file's name brought, unable to command the terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def table(rows: Sequence[Sequence[str]], *, right: Iterable[int] = ()) -> str:
    """The rows in columns; those numbered in `right` are aligned on the right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padding = " " * (width - _width(cell))
            cells.append(padding + cell if number in right else cell + padding)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def picture_protocol(environ: Mapping[str, str]) -> Protocol | None:
    """How the terminal shows pictures; None when it cannot, or Pillow is missing."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        return None
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    # A multiplexer swallows what it does not know, but passes on the outer terminal's variables.
    if not term.startswith(("tmux", "screen")):
        if term in {"xterm-kitty", "xterm-ghostty"}:
            return "kitty"
        if program in {"iTerm.app", "WezTerm"} or environ.get("LC_TERMINAL") == "iTerm2":
            return "iterm"
    return "blocks" if environ.get("COLORTERM") in {"truecolor", "24bit"} else None


def strips(
    pictures: Sequence[bytes | None],
    protocol: Protocol,
    columns: int,
    captions: Sequence[str] = (),
) -> str:
    """The pictures side by side, as many as fit into `columns`, with their numbers below.

    `captions` follow the numbers, as far as they fit below a picture.
    """
    titles = [
        _cut(f"{number}  {printable(caption)}".rstrip(), _COLUMNS)
        for number, (_, caption) in enumerate(zip_longest(pictures, captions, fillvalue=""), 1)
    ]
    fit = max(1, (columns + 1) // (_COLUMNS + 1))
    parts = []
    for start in range(0, len(pictures), fit):
        row = pictures[start : start + fit]
        below = titles[start : start + fit]
        parts.append(_strip(row, protocol))
        parts.append(" ".join(map(_centred, below)).rstrip())
    return "\n".join(parts)


def _width(text: str) -> int:
    return sum(
        0
        if unicodedata.combining(character)
        else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def _cut(text: str, columns: int) -> str:
    if _width(text) <= columns:
        return text
    while _width(text) >= columns:
        text = text[:-1]
    return f"{text}…"


def _centred(title: str) -> str:
    free = _COLUMNS - _width(title)
    return " " * (free // 2) + title + " " * (free - free // 2)


def _strip(pictures: Sequence[bytes | None], protocol: Protocol) -> str:
    columns = len(pictures) * (_COLUMNS + 1) - 1
    if protocol == "blocks":
        return _blocks(_joined(pictures, 1, 2))
    out = io.BytesIO()
    _joined(pictures, *_CELL).save(out, "PNG")
    png = base64.b64encode(out.getvalue()).decode()
    if protocol == "iterm":
        size = f"width={columns};height={_LINES};preserveAspectRatio=0"
        return f"\x1b]1337;File=inline=1;size={len(out.getvalue())};{size}:{png}\a"
    chunks = [png[start : start + _KITTY_CHUNK] for start in range(0, len(png), _KITTY_CHUNK)]
    first = f"a=T,f=100,q=2,c={columns},r={_LINES},"
    return "".join(
        f"\x1b_G{first if number == 0 else ''}m={int(number < len(chunks) - 1)};{chunk}\x1b\\"
        for number, chunk in enumerate(chunks)
    )


def _joined(pictures: Sequence[bytes | None], width: int, height: int) -> "Image.Image":
    """One picture of all, in cells of width x height pixels; what is no picture stays empty."""
    from PIL import Image, ImageOps

    side = (_COLUMNS * width, _LINES * height)
    step = (_COLUMNS + 1) * width
    joined = Image.new("RGBA", (len(pictures) * step - width, side[1]))
    for number, picture in enumerate(pictures):
        try:
            with Image.open(io.BytesIO(picture or b"")) as image:
                fitted = ImageOps.pad(image.convert("RGBA"), side, color=(0, 0, 0, 0))
        except OSError:
            continue
        joined.paste(fitted, (number * step, 0))
    return joined


def _blocks(picture: "Image.Image") -> str:
    """Two pixels in each character: the upper half block in the one's colour on the other's."""
    lines = []
    for y in range(0, picture.height, 2):
        line = ""
        for x in range(picture.width):
            upper, lower = picture.getpixel((x, y)), picture.getpixel((x, y + 1))
            assert isinstance(upper, tuple)  # noqa: S101
            assert isinstance(lower, tuple)  # noqa: S101
            if upper[3] and lower[3]:
                foreground, background = _colour(upper), _colour(lower)
                line += f"\x1b[38;2;{foreground};48;2;{background}m▀"
            elif upper[3]:
                line += f"\x1b[0;38;2;{_colour(upper)}m▀"
            elif lower[3]:
                line += f"\x1b[0;38;2;{_colour(lower)}m▄"
            else:
                line += "\x1b[0m "
        lines.append(f"{line}\x1b[0m")
    return "\n".join(lines)


def _colour(pixel: tuple[int, ...]) -> str:
    return ";".join(map(str, pixel[:3]))
