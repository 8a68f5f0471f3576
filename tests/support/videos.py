"""Videos that the tests make themselves, with PyAV: scenes of one colour with a pattern each."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np

from image_search.values import Pixels

RATE: Final = 10
SIZE: Final = (64, 48)


def scene(number: int, size: tuple[int, int] = SIZE) -> Pixels:
    """A picture for each number, uint8 RGB [h, w, 3]: large squares, unlike those of others."""
    width, height = size
    squares = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    rows = np.arange(height) * 3 // height
    columns = np.arange(width) * 4 // width
    return np.asarray(squares[rows][:, columns])


def write_video(
    path: Path,
    pictures: Sequence[Pixels] | None = None,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    rate: int = RATE,
    seconds: float = 5,
    times: Sequence[float] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    change: Callable[[Any, Any], None] = lambda _container, _stream: None,
) -> Path:
    """A video that shows another `scene` each second; or these pictures, at these `times`."""
    if pictures is None:
        pictures = [scene(frame // rate) for frame in range(round(rate * seconds))]
    moments = times or [number / rate for number in range(len(pictures))]
    with av.open(path, "w", container_options=container_options or {}) as container:
        container.metadata.update(metadata or {})
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixel_format
        change(container, stream)
        for picture, moment in zip(pictures, moments, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.time_base = Fraction(1, 1000)
            frame.pts = round(moment * 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
