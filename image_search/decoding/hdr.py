"""Pictures with a high dynamic range, as ordinary screens show them."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Transfer characteristics, by ITU-T H.273, table 3.
_PQ: Final = 16
_HLG: Final = 18
# SMPTE ST 2084.
_M1: Final = 2610 / 16384
_M2: Final = 2523 / 4096 * 128
_C1: Final = 3424 / 4096
_C2: Final = 2413 / 4096 * 32
_C3: Final = 2392 / 4096 * 32
_PQ_PEAK: Final = 10_000.0
# ITU-R BT.2100, table 5; a screen of 1,000 cd/m².
_A: Final = 0.17883277
_B: Final = 1 - 4 * _A
_C: Final = 0.5 - _A * np.log(4 * _A)
_HLG_PEAK: Final = 1000.0
_HLG_GAMMA: Final = 1.2
_LUMINANCE: Final = np.array([0.2627, 0.6780, 0.0593], np.float32)
# White of a picture, in cd/m²: ITU-R BT.2408.
_WHITE: Final = 203.0
# From BT.2020's primaries to BT.709's: ITU-R BT.2087, 4.
_TO_709: Final = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    np.float32,
)
# What is brighter than white is rolled off from here on, so that no highlight is cut.
_KNEE: Final = 0.75

Floats = NDArray[np.float32]


def is_hdr(transfer: int) -> bool:
    """Whether a transfer characteristic, as H.273 numbers them, is PQ or HLG."""
    return int(transfer) in {_PQ, _HLG}


def tone_mapped(pixels: NDArray[np.uint16], transfer: int) -> Image.Image:
    """An RGB image of uint16 RGB [h, w, 3] with BT.2020's primaries, coded in PQ or HLG."""
    coded = pixels.astype(np.float32) / np.float32(65535)
    light = _from_pq(coded) if int(transfer) == _PQ else _from_hlg(coded)
    light = np.maximum((light / _WHITE) @ _TO_709.T, 0)
    # By the largest channel, which keeps hues.
    peak = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
    over = np.maximum(peak - _KNEE, 0) / (1 - _KNEE)
    rolled = np.where(peak > _KNEE, _KNEE + (1 - _KNEE) * over / (1 + over), peak)
    shown = _to_srgb(light * (rolled / peak))
    return Image.fromarray((shown * 255).round().clip(0, 255).astype(np.uint8))


def _from_pq(coded: Floats) -> Floats:
    """cd/m², by SMPTE ST 2084."""
    power = np.power(coded, 1 / _M2)
    linear = np.power(np.maximum(power - _C1, 0) / (_C2 - _C3 * power), 1 / _M1)
    return np.asarray(linear * _PQ_PEAK, np.float32)


def _from_hlg(coded: Floats) -> Floats:
    """cd/m² on a screen of 1,000 cd/m², by ITU-R BT.2100."""
    scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - _C) / _A) + _B) / 12)
    luminance = (scene @ _LUMINANCE)[..., np.newaxis]
    shown = scene * np.power(np.maximum(luminance, 1e-6), _HLG_GAMMA - 1) * _HLG_PEAK
    return np.asarray(shown, np.float32)


def _to_srgb(linear: Floats) -> Floats:
    """IEC 61966-2-1."""
    low = linear * np.float32(12.92)
    high = np.float32(1.055) * np.power(np.maximum(linear, 0.0031308), 1 / 2.4) - np.float32(0.055)
    return np.asarray(np.where(linear <= 0.0031308, low, high), np.float32)
