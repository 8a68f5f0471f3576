"""Frames of videos, by time and picture, against FFmpeg's own program."""

import io
import shutil
import subprocess
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from PIL import Image

from image_search.values import Pixels
from image_search.videos import Frame, Sampling, VideoFrames, read_frames
from tests.support.videos import RATE, SIZE, scene, write_video

pytestmark = pytest.mark.slow

FFMPEG: Final = shutil.which("ffmpeg")
# Of 255, on average; different scenes differ by 80. Colours are coded for four pixels together.
CLOSE: Final = 12.0


def read(
    path: Path, sampling: Sampling | None = None, **options: int
) -> tuple[list[Frame], VideoFrames]:
    with (
        path.open("rb") as file,
        read_frames(
            file, sampling, max_pixels=10_000_000, min_side=options.get("min_side", 48)
        ) as frames,
    ):
        return list(frames), frames


def times(path: Path, sampling: Sampling | None = None) -> list[float]:
    return [frame.time for frame in read(path, sampling)[0]]


def difference(one: Image.Image, other: Image.Image | Pixels) -> float:
    pixels = np.asarray(one, np.float32), np.asarray(other, np.float32)
    assert pixels[0].shape == pixels[1].shape
    return float(np.abs(pixels[0] - pixels[1]).mean())


def by_ffmpeg(path: Path, time: float) -> Image.Image:
    """The first frame at or after a time, as FFmpeg's program shows it."""
    if FFMPEG is None:
        pytest.skip("there is no ffmpeg")
    done = subprocess.run(
        [
            *(FFMPEG, "-v", "error", "-i", path, "-vf", f"select=gte(t\\,{time - 0.0005})"),
            *("-frames:v", "1", "-f", "image2pipe", "-c:v", "png", "-"),
        ],
        capture_output=True,
        check=True,
    )
    return Image.open(io.BytesIO(done.stdout)).convert("RGB")


KINDS: Final = [
    ("libx264", "a.mp4", "yuv420p"),
    ("libx264", "a.mkv", "yuv420p"),
    ("libx264", "a.mov", "yuv422p"),
    ("libx264", "a.ts", "yuv420p"),
    ("libx264", "a.mp4", "yuv420p10le"),
    ("libx265", "a.mp4", "yuv420p"),
    ("libx265", "a.mkv", "yuv420p10le"),
    ("libvpx-vp9", "a.webm", "yuv420p"),
    ("libsvtav1", "a.mp4", "yuv420p"),
    ("libsvtav1", "a.webm", "yuv420p10le"),
    ("mpeg4", "a.avi", "yuv420p"),
    ("mpeg4", "a.mp4", "yuv420p"),
    ("mpeg2video", "a.mpg", "yuv420p"),
    ("mjpeg", "a.avi", "yuvj420p"),
]


@pytest.mark.parametrize(("codec", "name", "pixel_format"), KINDS)
def test_one_frame_a_second_is_that_of_ffmpeg(
    tmp_path: Path, codec: str, name: str, pixel_format: str
) -> None:
    rate = 25 if codec == "mpeg2video" else RATE
    options = {"log-level": "none"} if codec == "libx265" else {}
    path = write_video(
        tmp_path / name, codec=codec, pixel_format=pixel_format, rate=rate, options=options
    )
    found, video = read(path)
    assert [frame.time for frame in found] == [0, 1, 2, 3, 4]
    # MPEG program streams do not say it, and it is a guess.
    assert video.duration == pytest.approx(5, abs=2 if name == "a.mpg" else 0.2)
    assert video.size == SIZE
    assert video.damage == ""
    for number, frame in enumerate(found):
        assert difference(frame.image, scene(number)) < CLOSE
    assert difference(found[3].image, by_ffmpeg(path, 3)) < CLOSE
