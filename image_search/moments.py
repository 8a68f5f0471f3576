"""How records name moments of videos: their ids, and the fields of their metadata."""

from typing import Final

from image_search.values import Metadata

# The id that the video's file would have as an image, and seconds from its start.
VIDEO_FIELD: Final = "video"
TIME_FIELD: Final = "time"
# Of the whole video, in seconds.
DURATION_FIELD: Final = "duration"

_MARK: Final = "#t="


def frame_id(video: str, seconds: float) -> str:
    """The id of the frame that a video shows `seconds` after its start, as in `a.mp4#t=12.000`."""
    return f"{frame_prefix(video)}{seconds:.3f}"


def frame_prefix(video: str) -> str:
    """What the ids of a video's frames begin with."""
    return video + _MARK


def video_of(metadata: Metadata) -> str | None:
    """The video that a record is a frame of; None for other images."""
    video = metadata.get(VIDEO_FIELD)
    return video if isinstance(video, str) and video else None


def time_of(metadata: Metadata) -> float | None:
    """Seconds from the start of its video; None for images that are no frames."""
    time = metadata.get(TIME_FIELD)
    if not isinstance(time, int | float) or isinstance(time, bool):
        return None
    return float(time) if video_of(metadata) is not None else None
