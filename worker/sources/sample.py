"""A labelled image set drawn by code, for trying image search where nothing can be downloaded."""

import colorsys
import math
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from image_search.errors import SourceError
from image_search.values import Pixels
from worker.sources.source import Item, Source, Split

# Seeds of the pictures; as many to ingest as are embedded in little time.
SEEDS: Final[dict[Split, range]] = {"train": range(60), "test": range(100, 150)}

_SIZE: Final = 96
_SIDE: Final = 4 * _SIZE
_Point = tuple[float, float]
_Ink = tuple[int, ...]  # red, green, blue and perhaps alpha, 0..255

_WHITE: Final = (250, 250, 252)
_DARK: Final = (40, 34, 40)
_SHADOW: Final = (*_DARK, 80)
_WOOD: Final = (112, 76, 50)
# Sky at the top, sky at the horizon, and the light (in 255ths) that falls on everything else.
_HOURS: Final = {
    "morning": ((140, 190, 235), (255, 226, 200), (255, 246, 232)),
    "noon": ((56, 138, 226), (196, 228, 250), (255, 255, 255)),
    "overcast": ((138, 154, 172), (216, 221, 226), (226, 230, 240)),
    "sunset": ((98, 70, 140), (255, 158, 88), (250, 212, 190)),
    "dusk": ((44, 48, 108), (222, 126, 150), (206, 182, 222)),
    "night": ((8, 12, 42), (44, 60, 118), (156, 166, 216)),
}


def _mix(first: _Ink, second: _Ink, share: float) -> _Ink:
    return tuple(round(p + (q - p) * share) for p, q in zip(first, second, strict=True))


def _tone(rng: random.Random, hue: float, saturation: float, value: float) -> _Ink:
    """Return a colour near the given one (hue in turns, the others 0..1)."""
    hue += rng.uniform(-0.03, 0.03)
    s, v = (min(1, max(0, c + rng.uniform(-0.08, 0.08))) for c in (saturation, value))
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, s, v))


def _arc(first: float, last: float, radius: float = 1) -> list[_Point]:
    """Return 33 points of a circle between two angles in turns, clockwise from the right."""
    angles = [math.tau * (first + (last - first) * i / 32) for i in range(33)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


_CIRCLE: Final = _arc(0, 1)


class _Scene:
    """A picture in the making; x and y (down) are in units set by `at`, at first picture widths."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.light: _Ink = (255, 255, 255)
        self.image = Image.new("RGB", (_SIDE, _SIDE))
        self._pen = ImageDraw.Draw(self.image, "RGBA")
        self.at(0, 0, 1)

    def at(self, x: float, y: float, unit: float, tilt: float = 0) -> None:
        """Move the origin; given a tilt (radians), turn and shear by up to it and maybe mirror."""
        turn, shear = self.rng.uniform(-tilt, tilt), self.rng.uniform(-tilt, tilt)
        cos, sin = unit * math.cos(turn), unit * math.sin(turn)
        sign = self.rng.choice((-1, 1)) if tilt else 1
        self._frame = (sign * cos, shear * cos - sin, x, sign * sin, shear * sin + cos, y)

    def items(self, n: int, top: float, bottom: float, unit: float) -> Iterator[float]:
        """Move to each of some things side by side, the furthest first; yield its relative size."""
        sizes = sorted(self.rng.uniform(0.8, 1.1) / (0.5 + 0.5 * n) for _ in range(n))
        for size, column in zip(sizes, self.rng.sample(range(n), n), strict=True):
            x = (column + self.rng.uniform(0.4, 0.6)) / n
            self.at(x, self.rng.uniform(top, bottom), unit * size, 0.1)
            yield size

    def polygon(self, points: Sequence[_Point], ink: _Ink) -> None:
        a, b, c, d, e, f = self._frame
        corners = [(_SIDE * (a * x + b * y + c), _SIDE * (d * x + e * y + f)) for x, y in points]
        lit = tuple(i * j // 255 for i, j in zip(ink, (*self.light, 255), strict=False))
        self._pen.polygon(corners, lit)

    def box(self, left: float, top: float, right: float, bottom: float, ink: _Ink) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], ink)

    def oval(self, x: float, y: float, rx: float, ry: float, ink: _Ink, turn: float = 0) -> None:
        c, s = math.cos(turn), math.sin(turn)
        rim = ((rx * u, ry * v) for u, v in _CIRCLE)
        self.polygon([(x + u * c - v * s, y + u * s + v * c) for u, v in rim], ink)

    def ball(self, x: float, y: float, r: float, ink: _Ink) -> None:
        """Draw a disc lit from the upper left."""
        self.oval(x, y, r, r, _mix(ink, _DARK, 0.22))
        self.oval(x - 0.1 * r, y - 0.1 * r, 0.86 * r, 0.86 * r, ink)

    def stroke(self, path: Sequence[_Point], width: float, ink: _Ink) -> None:
        """Draw a line with round joints and ends."""
        r = width / 2
        for x, y in path:
            self.oval(x, y, r, r, ink)
        for (x, y), (p, q) in pairwise(path):
            k = r / math.hypot(p - x, q - y)
            u, v = k * (y - q), k * (p - x)
            self.polygon([(x + u, y + v), (p + u, q + v), (p - u, q - v), (x - u, y - v)], ink)

    def fill(self, top: _Ink, bottom: _Ink) -> None:
        column = np.rint(np.linspace(top, bottom, _SIDE)).astype(np.uint8)[:, np.newaxis]
        self.image.paste(Image.fromarray(column.repeat(_SIDE, axis=1)))

    def sky(self, hours: Sequence[str] = (*_HOURS, "noon", "noon")) -> None:
        """Fill the picture with an hour's sky, perhaps with stars, a sun or moon, and clouds."""
        rng, hour = self.rng, self.rng.choice(hours)
        top, bottom, light = _HOURS[hour]
        tint = _tone(rng, rng.random(), 0.5, 0.5)
        self.fill(_mix(top, tint, 0.12), _mix(bottom, tint, 0.12))
        self.specks(rng.randint(15, 50) * (hour == "night"), 0, 0.008, 0.008, _WHITE)
        if hour != "overcast" and rng.random() < 0.6:
            self.at(rng.uniform(0.08, 0.92), rng.uniform(0.08, 0.3), rng.uniform(0.05, 0.09))
            for r, alpha in ((2.4, 50), (1.6, 50), (1, 255)):
                self.oval(0, 0, r, r, (255, 244, 196, alpha))
        self.light = light
        for _ in range(rng.randint(0, 3)):
            self.at(rng.random(), rng.uniform(0.08, 0.4), rng.uniform(0.05, 0.11))
            for x in (-1, -0.4, 0.3, 0.9):
                r = rng.uniform(0.35, 0.7)
                self.oval(x, -r / 2, r * 1.2, r, _WHITE)

    def hills(self, height: float, ink: _Ink) -> None:
        """Cover the picture below `height` with rolling ground."""
        self.at(0, 0, 1)
        p, q = self.rng.uniform(0, 6), self.rng.uniform(0, 6)
        swell = [math.sin(p + i / 3) * 0.03 + math.sin(q + i / 2) * 0.015 for i in range(17)]
        ridge = [(i / 16, height + wave) for i, wave in enumerate(swell)]
        self.polygon([(0, 1), *ridge, (1, 1)], ink)

    def specks(self, count: int, top: float, rx: float, ry: float, ink: _Ink) -> None:
        """Scatter ovals of up to the given radii between `top` and the bottom of the picture."""
        self.at(0, 0, 1)
        for _ in range(count):
            k = self.rng.uniform(0.4, 1)
            self.oval(self.rng.random(), self.rng.uniform(top, 1), k * rx, k * ry, ink)

    def finish(self) -> Image.Image:
        """Return the reduced picture with grain, fine or blotchy."""
        cells = _SIZE // self.rng.choice((1, 1, 2, 6))
        grain = Image.frombytes("L", (cells, cells), self.rng.randbytes(cells * cells))
        noise = np.asarray(grain.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR), np.int32) - 128
        pixels = np.asarray(self.image.reduce(_SIDE // _SIZE), np.int32)
        pixels = pixels + (noise * self.rng.randint(2, 14) // 128)[:, :, np.newaxis]
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _balloon(scene: _Scene, rng: random.Random) -> None:
    scene.sky()
    if rng.random() < 0.6:
        scene.hills(rng.uniform(0.84, 0.94), _tone(rng, 0.3, 0.5, 0.6))
    for _ in scene.items(rng.choice((1, 1, 2, 3)), 0.33, 0.42, 0.28):
        hue = rng.random()
        inks = _tone(rng, hue, 0.8, 0.85), rng.choice((_WHITE, _tone(rng, hue + 0.15, 0.7, 0.95)))
        scene.stroke([(-0.15, 1.7), (-0.2, 1.3), (0.2, 1.3), (0.15, 1.7)], 0.04, _DARK)
        for i, width in enumerate((1, 0.74, 0.44, 0.15)):
            envelope = [*_arc(-0.58, 0.08), (0.24, 1.32), (-0.24, 1.32)]
            scene.polygon([(width * x, y) for x, y in envelope], inks[i % 2])
        if rng.random() < 0.5:
            teeth = [(0.95 - 0.19 * i, 0.3 - 0.2 * (i % 2)) for i in range(11)]
            scene.polygon([(-0.99, -0.12), (0.99, -0.12), *teeth], _tone(rng, hue + 0.5, 0.7, 0.7))
        scene.polygon([(-0.2, 1.66), (0.2, 1.66), (0.16, 1.95), (-0.16, 1.95)], _WOOD)


def _boat(scene: _Scene, rng: random.Random) -> None:
    scene.sky()
    horizon = rng.uniform(0.5, 0.68)
    scene.at(0, 0, 1)
    scene.box(0, horizon, 1, 1, _tone(rng, rng.uniform(0.5, 0.6), 0.65, 0.65))
    scene.specks(24, horizon + 0.02, 0.13, 0.008, (*_WHITE, 80))
    for _ in scene.items(rng.choice((1, 1, 2, 3)), horizon + 0.08, horizon + 0.22, 0.31):
        hull, *sails = (_tone(rng, rng.random(), 0.7, v) for v in (0.65, 0.9, 0.9))
        scene.oval(0, 0.16, 1.1, 0.12, _SHADOW)
        scene.stroke([(0, -0.2), (0, -1.75)], 0.07, _WOOD)
        edge = [(0.08, -1.68), (0.5, -1.1), (0.9, -0.42), (0.08, -0.42)]
        scene.polygon([(-x, y) for x, y in edge], rng.choice((_WHITE, sails[0])))
        if rng.random() < 0.75:
            scene.polygon(edge, rng.choice((_WHITE, sails[1])))
        scene.polygon([(0.02, -1.75), (0.4, -1.85), (0.02, -1.95)], hull)
        scene.polygon([(-1, -0.3), (1.2, -0.36), (0.8, 0.16), (-0.8, 0.16)], hull)
        scene.polygon([(-1, -0.3), (1.2, -0.36), (1.12, -0.24), (-0.96, -0.19)], _WHITE)


def _cactus(scene: _Scene, rng: random.Random) -> None:
    scene.sky()
    horizon = rng.uniform(0.6, 0.75)
    scene.hills(horizon, _tone(rng, rng.uniform(0.07, 0.12), 0.5, 0.88))
    scene.specks(rng.randint(3, 20), horizon + 0.08, 0.03, 0.015, _SHADOW)
    for _ in scene.items(rng.choice((1, 1, 2, 3)), 0.86, 0.94, 0.34):
        green = _tone(rng, rng.uniform(0.3, 0.42), 0.6, 0.55)
        arms = [[(0.0, 0.0), (0.0, rng.uniform(-2, -1.5))]]
        for side in rng.choice(((1,), (-1, 1), (-1, 1), (-1, 1, 1))):
            low, reach = -rng.uniform(0.4, 0.9), side * rng.uniform(0.5, 0.7)
            arms.append([(0, low), (reach, low), (reach, low - rng.uniform(0.35, 0.8))])
        bloom = _tone(rng, rng.choice((0.9, 0.13, 0)), 0.7, 0.95) if rng.random() < 0.5 else green
        scene.oval(0.2, 0, 0.6, 0.1, _SHADOW)
        for path in reversed(arms):
            (x, low), (_, high) = path[-2:]
            scene.stroke(path, 0.36, green)
            for shift, shade in ((-0.09, _WHITE), (0.09, _DARK)):
                scene.stroke([(x + shift, low), (x + shift, high)], 0.05, _mix(green, shade, 0.35))
            scene.ball(x, high - 0.18, 0.12, bloom)


def _castle(scene: _Scene, rng: random.Random) -> None:
    scene.sky()
    scene.hills(rng.uniform(0.68, 0.8), _tone(rng, rng.uniform(0.2, 0.36), 0.5, 0.6))
    stone = _tone(rng, rng.choice((0.08, 0.1, 0.6, 0.95)), rng.uniform(0.05, 0.3), 0.75)
    roof, glass = _tone(rng, rng.random(), 0.65, 0.6), rng.choice(((255, 226, 120), _DARK))
    pointed, keep, end = rng.random() < 0.7, rng.uniform(-0.3, 0.3), rng.uniform(0.2, 0.28)
    scene.at(rng.uniform(0.42, 0.58), rng.uniform(0.8, 0.9), rng.uniform(0.27, 0.35), 0.06)
    for x, w, low in ((keep, 0.3, -1.1), (0, 0.8, -0.6), (-0.85, end, -0.9), (0.85, end, -0.9)):
        top, wall = low - rng.uniform(0, 0.4), _mix(stone, _DARK, rng.uniform(0, 0.2))
        scene.box(x - w, top, x + w, 0, wall)
        scene.box(x + w / 2, top, x + w, 0, _SHADOW)
        for i in (-0.8, 0, 0.8):
            scene.box(x + (i - 0.25) * w, top - 0.12, x + (i + 0.25) * w, top, wall)
            scene.stroke([(x + i / 3 * w, top + 0.2), (x + i / 3 * w, top + 0.3)], 0.07, glass)
        if pointed and x:
            tip = top - rng.uniform(2, 3) * w
            scene.polygon([(x - 1.3 * w, top), (x, tip), (x + 1.3 * w, top)], roof)
            scene.polygon([(x, tip - 0.2), (x + 0.25, tip - 0.1), (x, tip + 0.04)], roof)
    scene.stroke([(0, -0.32), (0, -0.16)], 0.36, _WOOD)


def _fish(scene: _Scene, rng: random.Random) -> None:
    hue = rng.uniform(0.46, 0.64)
    scene.fill(_tone(rng, hue, 0.45, 0.9), _tone(rng, hue, 0.8, 0.45))
    for _ in range(rng.randint(0, 4)):
        x, w = rng.random(), rng.uniform(0.03, 0.1)
        scene.polygon([(x, 0), (x + w, 0), (x + 3 * w - 0.3, 1), (x - 0.4, 1)], (*_WHITE, 34))
    if rng.random() < 0.7:
        scene.hills(rng.uniform(0.84, 0.94), _tone(rng, 0.11, 0.4, 0.8))
    scene.specks(rng.randint(3, 14), 0, 0.028, 0.028, (*_WHITE, 110))
    for _ in scene.items(rng.choice((1, 1, 2, 2, 3, 4)), 0.3, 0.7, 0.37):
        hue, tall = rng.choice((0, 0.05, 0.1, 0.15, 0.3, 0.8, 0.92)), rng.uniform(0.38, 0.68)
        body, trim = _tone(rng, hue, 0.8, 0.95), _tone(rng, hue + 0.1, 0.7, 0.95)
        scene.polygon([(-0.7, 0), (-1.25, -0.5), (-1.1, 0), (-1.25, 0.5)], trim)
        scene.polygon([(-0.5, 0), (-0.2, -1.6 * tall), (0.5, 0), (-0.3, 1.4 * tall)], trim)
        lens = [(i / 20, tall * (1 - (i / 20) ** 2) ** 0.7) for i in range(-20, 21)]
        for i in range(-1, rng.randint(0, 3)):  # the body, then its stripes
            part = lens if i < 0 else lens[22 - 8 * i : 26 - 8 * i]
            ink = body if i < 0 else rng.choice((_WHITE, _DARK, trim))
            scene.polygon([*part, *((x, -y) for x, y in part[::-1])], ink)
        scene.oval(0.62, -0.1 * tall, 0.12, 0.12, _WHITE)
        scene.oval(0.65, -0.1 * tall, 0.06, 0.06, _DARK)


def _flower(scene: _Scene, rng: random.Random) -> None:
    scene.sky()
    scene.hills(rng.uniform(0.6, 0.85), _tone(rng, 0.28, 0.6, 0.6))
    if rng.random() < 0.5:  # a close-up, with the meadow out of focus behind
        scene.box(0, 0, 1, 1, _tone(rng, 0.3, 0.4, 0.5))
        scene.specks(rng.randint(6, 20), 0, 0.14, 0.14, (*_tone(rng, 0.25, 0.5, 0.8), 60))
    petals, hue = rng.randint(5, 12), rng.choice((0, 0.04, 0.13, 0.6, 0.75, 0.85, 0.93))
    for size in scene.items(rng.choice((1, 1, 2, 3)), 0.34, 0.5, 0.36):
        leaf, foot = _tone(rng, 0.33, 0.65, 0.5), 2.2 / size
        scene.stroke([(0, 0), (0.1, 0.6 * foot), (0, foot)], 0.13, leaf)
        for side in (-1, 1):
            scene.oval(0.45 * side, foot * rng.uniform(0.5, 0.7), 0.45, 0.15, leaf, -0.5 * side)
        petal = rng.choice((_WHITE, *(_tone(rng, hue, 0.65, 0.95) for _ in range(4))))
        for far, shift in ((0.62, 0.5), (0.5, 0)):  # darker petals show between the inner ones
            ink = _mix(petal, (150, 30, 90), 0.4 * shift)
            for i in range(petals):
                turn = math.tau * (i + shift) / petals
                x, y = far * math.cos(turn), far * math.sin(turn)
                scene.oval(x, y, 0.68 * far, 1.8 / petals, ink, turn)
        scene.ball(0, 0, rng.uniform(0.22, 0.34), _tone(rng, rng.choice((0.13, 0.07)), 0.75, 0.8))


def _mountain(scene: _Scene, rng: random.Random) -> None:
    scene.sky()
    rock = _tone(rng, rng.choice((0.6, 0.66, 0.08, 0.75)), 0.25, 0.5)
    haze, snow = _tone(rng, 0.6, 0.25, 0.8), rng.uniform(0.2, 0.5)
    for share, n in ((0.6, 4), (0, rng.randint(1, 3))):
        stone = _mix(rock, haze, share)
        for _ in scene.items(n, 0.82, 0.9, 0.4 + 0.25 * n):
            w = rng.uniform(0.55, 0.9)
            edge = [(w * snow * (1 - i / 3), snow - 1 - 0.12 * (i % 2)) for i in range(7)]
            scene.polygon([(0, -1), (w, 0), (-w, 0)], stone)
            scene.polygon([(0, -1), *edge], _mix(_WHITE, haze, share))
            scene.polygon([(0, -1), (w, 0), (0.1, 0), (-0.1, -0.5)], _SHADOW)
    scene.hills(0.8, _tone(rng, rng.choice((0.15, 0.25, 0.35, 0.57)), 0.5, 0.55))


def _rainbow(scene: _Scene, rng: random.Random) -> None:
    scene.sky(("morning", "noon", "overcast", "overcast", "sunset"))
    x, y, r = rng.uniform(0.3, 0.7), rng.uniform(0.72, 0.92), rng.uniform(0.42, 0.62)
    bows = ((r, rng.uniform(0.02, 0.036), rng.randint(170, 240)), (1.4 * r, -0.02, 90))
    scene.at(x, y, 1, 0.08)
    for outer, band, alpha in bows[: rng.choice((1, 1, 2))]:
        for i, hue in enumerate((0, 0.07, 0.15, 0.33, 0.52, 0.64, 0.78)):
            edge = _arc(0.44, 1.06, outer - i * band) + _arc(1.06, 0.44, outer - (i + 1) * band)
            scene.polygon(edge, (*_tone(rng, hue, 0.8, 0.95), alpha))
    for lower in rng.choice(((-0.06,), (-0.08, 0.02))):
        scene.hills(y + lower, _tone(rng, rng.choice((0.2, 0.3, 0.36, 0.58)), 0.5, 0.6))


def _snowman(scene: _Scene, rng: random.Random) -> None:
    scene.sky()
    scene.hills(rng.uniform(0.66, 0.8), _tone(rng, 0.6, 0.08, 0.9))
    for _ in scene.items(rng.choice((1, 1, 1, 2, 3)), 0.86, 0.95, 0.37):
        scarf, hat = _tone(rng, rng.random(), 0.8, 0.8), _tone(rng, rng.random(), 0.6, 0.35)
        scene.oval(0.15, 0, 0.7, 0.1, _SHADOW)
        for side in (-1, 1):
            y = rng.uniform(-1.6, -1)
            twig = [(0.3, -0.95), (0.8, y), (1.05, y - 0.02), (0.9, y - 0.2)]
            scene.stroke([(side * u, v) for u, v in twig], 0.05, _WOOD)
        for y, r in ((-0.42, 0.52), (-1.05, 0.4), (-1.56, 0.3)):
            scene.ball(0, y, r, (238, 242, 252))
        for x, y in ((0.04, -0.95), (0.04, -0.75), (0.04, -0.5), (-0.08, -1.63), (0.14, -1.63)):
            scene.oval(x, y, 0.045, 0.045, _DARK)
        scene.stroke([(-0.26, -1.33), (0, -1.27), (0.26, -1.33), (0.25, -0.9)], 0.14, scarf)
        scene.polygon([(0, -1.58), (0.45, -1.5), (0, -1.46)], (240, 130, 40))
        if rng.random() < 0.6:
            scene.box(-0.36, -1.84, 0.36, -1.76, hat)
            scene.box(-0.22, -2.2, 0.22, -1.8, hat)
            scene.box(-0.22, -1.93, 0.22, -1.84, scarf)
        else:
            scene.polygon([(-0.28, -1.72), (-0.2, -1.95), (0.05, -2.15), (0.28, -1.72)], scarf)
            scene.stroke([(-0.26, -1.74), (0.26, -1.74)], 0.12, _WHITE)
            scene.ball(0.05, -2.15, 0.1, _WHITE)
    scene.specks(rng.choice((0, 20, 60)), 0, 0.012, 0.012, _WHITE)


def _tree(scene: _Scene, rng: random.Random) -> None:
    scene.sky()
    scene.hills(rng.uniform(0.66, 0.82), _tone(rng, rng.uniform(0.16, 0.34), 0.5, 0.65))
    season = rng.choice((0.25, 0.3, 0.35, 0.02, 0.07, 0.12, 0.93))
    wide, tall = rng.choice(((0.62, 0.5), (0.75, 0.45), (0.42, 0.68)))
    for _ in scene.items(rng.choice((1, 1, 2, 3)), 0.86, 0.94, 0.36):
        scene.oval(0.15, 0, 0.6, 0.08, _SHADOW)
        bark = _mix(_WOOD, _DARK, rng.random() / 2)
        fruit = _tone(rng, rng.choice((0, 0.1, 0.9)), 0.8, 0.9)
        scene.polygon([(-0.18, 0.03), (-0.08, -1), (0.08, -1), (0.18, 0.03)], bark)
        scene.stroke([(-0.35, -0.95), (0, -0.5), (0.35, -0.95)], 0.08, bark)
        for i in range(14 + rng.choice((0, 0, 8, 14))):
            # The first fourteen are leaves, in a spiral from the rim to the middle; then the fruit.
            turn, far = 2.4 * i, (1 - i / 14) ** 0.5 if i < 14 else rng.uniform(0.2, 1.1)
            x, y = wide * far * math.cos(turn), tall * far * math.sin(turn) - 0.75 - tall
            leaf = _tone(rng, season, 0.6, 0.55 + 0.02 * i)
            scene.ball(x, y, rng.uniform(0.28, 0.4) if i < 14 else 0.06, leaf if i < 14 else fruit)


_DRAWERS: Final[dict[str, Callable[[_Scene, random.Random], None]]] = {
    "balloon": _balloon,
    "boat": _boat,
    "cactus": _cactus,
    "castle": _castle,
    "fish": _fish,
    "flower": _flower,
    "mountain": _mountain,
    "rainbow": _rainbow,
    "snowman": _snowman,
    "tree": _tree,
}
KINDS: Final[tuple[str, ...]] = tuple(_DRAWERS)


def draw(kind: str, seed: int) -> Image.Image:
    """Return the 96x96 RGB picture that belongs to a kind and a seed."""
    if kind not in _DRAWERS:
        raise ValueError(f"unknown kind of picture: {kind!r}")
    scene = _Scene(random.Random(f"{kind}-{seed}"))
    _DRAWERS[kind](scene, scene.rng)
    return scene.finish()


def open_sample(split: Split) -> Source:
    """60 pictures of each kind to ingest, or 50 others to search for."""
    if split not in SEEDS:
        raise SourceError(f"the sample has no split {split}: its splits are {' and '.join(SEEDS)}")

    drawings = [(kind, seed) for kind in KINDS for seed in SEEDS[split]]

    # Whoever makes an index reads its source several times; all drawings take 17 MB.
    @cache
    def pixels(kind: str, seed: int) -> Pixels:
        return np.asarray(draw(kind, seed))

    def some(positions: Collection[int]) -> Iterator[Item]:
        for number in sorted(positions):
            kind, seed = drawings[number]
            yield Item(
                id=f"sample-{kind}-{seed:03d}",
                label=kind,
                content=pixels(kind, seed),
                metadata={"source": "sample"},
            )

    def items() -> Iterator[Item]:
        return some(range(len(drawings)))

    name = "sample" if split == "train" else f"sample ({split})"
    about = f"labels: {len(KINDS)} kinds of picture"
    return Source(name, len(drawings), items, about, tuple(SEEDS), some=some)
