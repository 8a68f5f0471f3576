"""Frames of videos: decoded in a process with limits, one after another, never a whole video.

    caller --(an open file)--> a process of its own --(reduced RGB frames)--> caller

The process knows nothing but the file. It reads one frame ahead of its caller, who may take as long
as it likes.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from multiprocessing import Pipe
from typing import Any, BinaryIO, Final, Self

from PIL import Image

from image_search import file_metadata
from image_search.decoding.files import open_memory, write_whole
from image_search.decoding.starting import how_it_ended, start
from image_search.errors import (
    ImageError,
    ImageTooCostlyError,
    ImageTooLargeError,
    NotAnImageError,
    NoVideoSupportError,
)
from image_search.program import install
from image_search.values import Metadata

_MIB: Final = 1024 * 1024
_SUFFIXES: Final = frozenset(
    {
        *(".3g2", ".3gp", ".asf", ".avi", ".dv", ".f4v", ".flv", ".ivf", ".m2ts", ".m4v", ".mkv"),
        *(".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".rm", ".rmvb", ".vob"),
        *(".webm", ".wmv"),
    }
)
# How the bytes of videos begin. Pictures have "ftyp" with other brands; a transport stream has 0x47
# every 188 bytes, or 192, and no text before the second.
_STARTS: Final = re.compile(
    rb"....ftyp(?!avif|avis|heic|heix|heif|hevc|hevx|mif1|msf1|crx )"
    rb"|....(?:moov|mdat|wide)"
    rb"|\x1aE\xdf\xa3"
    rb"|RIFF....AVI "
    rb"|\0\0\x01[\xb3\xba]"
    rb"|(?:.{4})?\x47[\x40-\x5f][\0-\xff][\x10-\x3f][\0-\x08\xff]"
    rb"|FLV\x01"
    rb"|\x30\x26\xb2\x75\x8e\x66\xcf\x11"
    rb"|\.RMF"
    rb"|DKIF"
    # The first page of Ogg, with the header of a video codec, or of all streams.
    rb"|OggS\0\x02.{20}\x01.(?:\x80theora|OVP80|BBCD\0|fishead\0)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are taken.

    At most `frames_per_second`, each the first at or after its time; with `key_frames` only such as
    are coded by themselves, which costs a tenth. Where that would be more than `max_frames`, so
    many, evenly from all of the video. `distinct` leaves out frames that hardly differ from the
    last one taken: by less than 4 of 255 on average, as grey pictures of 16x16. With `times`, in
    order, just the frames at these times, in seconds.
    """

    frames_per_second: float = 1.0
    key_frames: bool = False
    max_frames: int | None = None
    distinct: bool = True
    times: tuple[float, ...] | None = None


@dataclass(frozen=True)
class VideoLimits:
    """What decoding a video may take in its process.

    Memory is in bytes beyond what such a process needs when idle. Seconds are of CPU time, for a
    frame and, where that is bounded, for all of the video; `wall_seconds` are by the clock, for
    what is decoded in a second when nothing stands in the way.
    """

    memory: int = 1536 * _MIB
    frame_cpu_seconds: float = 20.0
    cpu_seconds: float | None = None
    wall_seconds: float = 120.0
    threads: int = 4


@dataclass(frozen=True)
class Frame:
    """`time` is in seconds from the video's start, to a millisecond; `image` is upright RGB.

    The image is reduced by a whole factor, as `images.decode` does.
    """

    time: float
    image: Image.Image


def is_available() -> bool:
    """Whether videos can be read: PyAV is an extra."""
    return find_spec("av") is not None


def require() -> None:
    """Raise NoVideoSupportError, which says what to install, where videos cannot be read."""
    if not is_available():
        raise NoVideoSupportError(f"this is a video; to read videos: {install('video')}")


def file_suffixes() -> frozenset[str]:
    """The suffixes of video files, in lower case, with the dot; .ts is not among them."""
    return _SUFFIXES


def looks_like_video(start: bytes) -> bool:
    """Whether a file with these first bytes, 64 or more, is a video of a kind that can be read."""
    return _STARTS.match(start) is not None


class VideoFrames:
    """The frames of a video, in order, as they are decoded; `read_frames` makes one.

    `duration` is the length of the video in seconds, `size` width and height as it is shown, and
    `fields` what its file tells, as `file_metadata` has it. `position` is how far it was read, in
    seconds, and `damage` what is to be told of a file that was not read whole: all that there is to
    say once the last frame was taken.
    """

    def __init__(
        self,
        file: BinaryIO | bytes,
        sampling: Sampling,
        max_pixels: int,
        min_side: int,
        limits: VideoLimits,
    ) -> None:
        require()
        self._limits = limits
        self._connection, other = Pipe()
        if isinstance(file, bytes):
            descriptor = open_memory()
            write_whole(descriptor, file)
        else:
            descriptor = os.dup(file.fileno())
        with other:
            try:
                os.lseek(descriptor, 0, os.SEEK_SET)
                self._process = start("video", (other.fileno(), descriptor))
            finally:
                os.close(descriptor)
        self.position = 0.0
        self.damage = ""
        task = {
            "sampling": asdict(sampling),
            "max_pixels": max_pixels,
            "min_side": min_side,
            "memory": limits.memory,
            "frame_cpu": limits.frame_cpu_seconds,
            "cpu": limits.cpu_seconds,
            "threads": limits.threads,
        }
        try:
            with suppress(OSError):  # what it says of its end is read below
                self._connection.send_bytes(json.dumps(task).encode())
            found = self._next()
            self.duration = float(found["duration"])
            self.size = int(found["size"][0]), int(found["size"][1])
            self.fields: Metadata = file_metadata.checked(found["fields"])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        """Raises ImageError where decoding fails before the end; what came before it is good."""
        while True:
            found = self._next()
            if "position" in found:
                self.position = float(found["position"])
            if "damage" in found:
                self.damage = str(found["damage"])
                return
            if "size" in found:
                width, height = found["size"]
                pixels = self._receive()
                yield Frame(
                    float(found["time"]),
                    Image.frombytes("RGB", (int(width), int(height)), pixels),
                )

    def close(self) -> None:
        """End the process, at once."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _next(self) -> dict[str, Any]:
        # No pickles: a decoder that was taken over by a video could send anything.
        found: dict[str, Any] = json.loads(self._receive())
        if "error" in found:
            raise self._failure(found["error"], found.get("message", ""))
        return found

    def _receive(self) -> bytes:
        try:
            if not self._connection.poll(self._limits.wall_seconds):
                raise self._failure("late")
            return self._connection.recv_bytes()
        except (EOFError, OSError) as exc:
            raise self._failure(how_it_ended(self._process)) from exc

    def _failure(self, reason: str, message: str = "") -> ImageError:
        match reason:
            case "not_a_video":
                return NotAnImageError(message)
            case "too_large":
                return ImageTooLargeError(message)
            case "memory":
                return ImageTooCostlyError(
                    f"the video takes more than {self._limits.memory // _MIB:,} MiB of memory to "
                    "decode: make its frames smaller"
                )
            case "crashed":
                return NotAnImageError("the video is damaged: its decoder crashed")
            case _:
                return ImageTooCostlyError(
                    "the video takes too long to decode: make it smaller or shorter"
                )


def read_frames(
    file: BinaryIO | bytes,
    sampling: Sampling | None = None,
    *,
    max_pixels: int,
    min_side: int,
    limits: VideoLimits | None = None,
) -> VideoFrames:
    """The frames of a video file, `file`, which is on a disk, or its bytes.

    To be used in a `with` statement, and once. Frames keep `min_side` pixels of their shorter side.
    Raises NotAnImageError for what is no video or has no picture, ImageTooLargeError for frames of
    more than `max_pixels` pixels, ImageTooCostlyError for what passes the limits, and
    NoVideoSupportError without PyAV. The file's position moves meanwhile.
    """
    return VideoFrames(file, sampling or Sampling(), max_pixels, min_side, limits or VideoLimits())
