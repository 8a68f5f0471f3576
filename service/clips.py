"""Videos that are searched with: at most 32 of their frames, decoded in a process with limits."""

from collections.abc import Callable
from typing import BinaryIO, Final, TypeVar

from PIL import Image

from image_search.errors import ImageTooCostlyError
from image_search.moments import MOST_QUERY_FRAMES
from image_search.videos import Sampling, VideoLimits, looks_like_video, read_frames

# 4K fits into 256 MiB. A first try, and one with key frames alone, which cost a tenth, end within
# the time of a request; on a machine that others keep busy, that ends first.
_LIMITS: Final = VideoLimits(
    memory=384 * 1024 * 1024, frame_cpu_seconds=3, cpu_seconds=3, wall_seconds=60, threads=2
)
_START_BYTES: Final = 512
T = TypeVar("T")


def is_clip(file: BinaryIO) -> bool:
    """Whether a file is a video; its position is at the start afterwards."""
    file.seek(0)
    start = file.read(_START_BYTES)
    file.seek(0)
    return looks_like_video(start)


def read_clip(
    content: bytes, use: Callable[[Image.Image], T], *, max_pixels: int, min_side: int
) -> list[T]:
    """What `use` makes of a video's frames: one a second, or fewer and evenly, less those alike.

    Of a video that takes too long it is the key frames. Raises as `image_search.videos.read_frames`
    does.
    """

    def read(*, key_frames: bool) -> list[T]:
        sampling = Sampling(key_frames=key_frames, max_frames=MOST_QUERY_FRAMES)
        with read_frames(
            content, sampling, max_pixels=max_pixels, min_side=min_side, limits=_LIMITS
        ) as frames:
            return [use(frame.image) for frame in frames]

    try:
        return read(key_frames=False)
    except ImageTooCostlyError:
        return read(key_frames=True)
