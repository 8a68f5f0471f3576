"""How records name moments of videos: their ids, and the fields of their metadata."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

from image_search.values import MAX_ID_LENGTH, Metadata

# The id that the video's file would have as an image, and seconds from its start.
VIDEO_FIELD: Final = "video"
TIME_FIELD: Final = "time"
# Of the whole video, in seconds.
DURATION_FIELD: Final = "duration"
# Of a video's first frame alone, which is written last: how its frames were taken.
SAMPLING_FIELD: Final = "sampling"
# Of that one, too: what there is to tell of a file that was not read whole.
DAMAGE_FIELD: Final = "damage"

# A video is searched with by so many of its frames.
MOST_QUERY_FRAMES: Final = 32

_MARK: Final = "#t="
_FRAME: Final = re.compile(rf"{_MARK}\d+\.\d{{3}}")
# What an id of a frame has behind that of its video, for 100 days at most.
_LONGEST_TIME: Final = len(f"{_MARK}9999999.999")
T = TypeVar("T")


def frame_id(video: str, seconds: float) -> str:
    """The id of the frame that a video shows `seconds` after its start, as in `a.mp4#t=12.000`."""
    return f"{frame_prefix(video)}{seconds:.3f}"


def frame_prefix(video: str) -> str:
    """What the ids of a video's frames begin with."""
    return frame_stem(video) + _MARK


def frame_stem(video: str) -> str:
    """What ids of a video's frames have before the time: its own id, cut if it is too long."""
    if len(video) <= MAX_ID_LENGTH - _LONGEST_TIME:
        return video
    digest = hashlib.sha256(video.encode()).hexdigest()
    return f"{video[: MAX_ID_LENGTH - _LONGEST_TIME - len(digest) - 1]}~{digest}"


def item_of(id_: str) -> str:
    """The same for all frames of a video, and another for any other image: the id without time."""
    at = id_.rfind(_MARK)
    return id_[:at] if at > 0 and _FRAME.fullmatch(id_, at) else id_


def seconds_of(id_: str) -> float:
    """The time in the id of a frame; 0 for an image that is none."""
    stem = item_of(id_)
    return 0.0 if stem == id_ else float(id_[len(stem) + len(_MARK) :])


def in_time(video: str, ids: Iterable[str]) -> list[str]:
    """Those of the ids that are a video's frames, by their time."""
    stem = frame_stem(video)
    return sorted((id_ for id_ in ids if item_of(id_) == stem != id_), key=seconds_of)


def spread(frames: Sequence[T], most: int = MOST_QUERY_FRAMES) -> list[T]:
    """At most so many of the frames, as evenly as can be, with the first and the last."""
    if len(frames) <= most:
        return list(frames)
    return [frames[round(step * (len(frames) - 1) / (most - 1))] for step in range(most)]


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
