"""What runs in a process that decodes one video, frame by frame, within limits.

Started by `image_search.videos`, which it talks to over one socket. The task is a message of JSON,
and the video is an open file. What it answers are messages of JSON: first about the video, then
one for each frame, and after that its RGB pixels; in between how far it is, and at the end what was
damaged; or an error. FFmpeg opens no other file, whatever this one names.
"""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from fractions import Fraction
from multiprocessing.connection import Connection
from typing import Any, Final, cast

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from image_search.decoding.confinement import address_space, confine, limit_memory
from image_search.decoding.hdr import is_hdr, tone_mapped
from image_search.errors import ImageTooLargeError, NotAnImageError

# Of FFmpeg's formats those that hold videos in one file, with its name for people. Others are lists
# of files (concat, hls, dash, image2), devices, and what any text could be taken for.
_FORMATS: Final = {
    "asf": "asf",
    "avi": "avi",
    "dv": "dv",
    "flv": "flv",
    "ivf": "ivf",
    "matroska": "matroska",
    "mov": "mp4",
    "mpeg": "mpeg",
    "mpegts": "mpegts",
    "mxf": "mxf",
    "ogg": "ogg",
    "rm": "rm",
}
# How long these are is a guess.
_UNSURE: Final = {"dv", "mpeg", "rm"}
# These tell which pictures no other is made from: such need not be decoded to come to a later one.
_WITH_UNUSED: Final = {"h264", "mpeg2video", "mpeg4"}
# In these a place is found by guessing times, and may be somewhat later.
_SEEK_MARGINS: Final = {"mpegts": 6.0, "mpeg": 6.0}
# Decoders hold some 20 pictures, of up to so many bytes in all for each pixel. They fail as they
# like where that is not to be had.
_MOST_BYTES_PER_PIXEL: Final = 60
_READ_BYTES: Final = 1024 * 1024
# A mean difference of 16x16 grey pixels below this is hardly seen: a clip of 20 s that stood still
# gave 1 frame of 500 so, and a lively one of 60 s all 60.
_LEAST_DIFFERENCE: Final = 4.0
_GREY_SIDE: Final = 16
# Times are rounded to milliseconds.
_DIGITS: Final = 3
_EARLY: Final = 0.0005
# To jump to a key frame takes less than to decode so many seconds.
_JUMPED: Final = 10.0
# What is read ahead to find a key frame before the next time: so many bytes at most.
_MOST_AHEAD: Final = 64 * 1024 * 1024
# Clocks that go back by more start anew, as where recordings were joined.
_GOES_BACK: Final = 1.0
# What may be missing at the end of a file that is whole: lengths are rounded, and of all streams.
_MISSING_SECONDS: Final = 1.0
_MISSING_SHARE: Final = 0.01
# More says nothing of a picture, and is an error in the file.
_MOST_ASPECT: Final = 8
# Without a word on their colours, pictures of this height or more have those of HD; as players do.
_LEAST_HD_LINES: Final = 720
_UNSPECIFIED: Final = 2  # ITU-T H.273, table 4
_SECONDS_BETWEEN_REPORTS: Final = 1.0
_SWS: Final = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def main(descriptor: int, file: int) -> None:
    """Decode the video that is open as `file` for the task that comes over a socket."""
    confine()
    held = address_space()
    with Connection(descriptor) as parent, suppress(EOFError, OSError):
        task = json.loads(parent.recv_bytes())
        limit_memory(held + task["memory"] if held else None)
        try:
            _Video(file, parent, task).run()
        except MemoryError:
            _send(parent, {"error": "memory"})
        except ImageTooLargeError as exc:
            _send(parent, {"error": "too_large", "message": str(exc)})
        except NotAnImageError as exc:
            _send(parent, {"error": "not_a_video", "message": str(exc)})


def _send(parent: Connection, message: dict[str, Any]) -> None:
    parent.send_bytes(json.dumps(message).encode())


class _Video:
    """A video and which of its frames are taken."""

    def __init__(self, file: int, parent: Connection, task: dict[str, Any]) -> None:
        self._parent = parent
        self._task = task
        self._file = file
        self._sampling = task["sampling"]
        self._position = 0.0
        # What messages were sent: about the video, and the last on how far it is.
        self._told = False
        self._reported = time.monotonic()
        self._last_grey: NDArray[np.float32] | None = None
        self._taken = 0
        self._bad = 0

    def run(self) -> None:
        """Answer the task. Raises MemoryError, and ImageError for what is no video."""
        self._limit_time()
        container = self._open()
        with container:
            self._container = container
            self._container_name = container.format.name
            self._seek_margin = _SEEK_MARGINS.get(self._container_name, 0.0)
            self._stream = self._choose_stream()
            self._length = self._find_length()
            reason = self._decode()
        if not self._taken:
            context = self._stream.codec_context
            if context.width * context.height * _MOST_BYTES_PER_PIXEL > self._task["memory"]:
                raise MemoryError
            raise NotAnImageError(
                f"no picture of the video can be decoded{reason and f': {reason}'}"
            )
        _send(self._parent, {"position": self._position, "damage": self._damage(reason)})

    def _limit_time(self) -> None:
        """For the next frame, within what is left for all."""
        seconds = self._task["frame_cpu"]
        if self._task["cpu"] is not None:
            seconds = min(seconds, max(0.01, self._task["cpu"] - time.process_time()))
        signal.setitimer(signal.ITIMER_PROF, seconds)

    # --- the file ---

    def _open(self) -> InputContainer:
        # Through Python, so that FFmpeg knows no name, and could open nothing beside it.
        opened = os.fdopen(self._file, "rb", buffering=0)
        try:
            return av.open(
                opened,
                "r",
                options={"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "none"},
                buffer_size=_READ_BYTES,
                metadata_errors="replace",
                io_open=_refuse,
            )
        except av.error.FFmpegError as exc:
            if isinstance(exc, MemoryError):
                raise
            opened.seek(0, os.SEEK_END)
            if not opened.tell():
                raise NotAnImageError("the file is empty: send the bytes of a video") from exc
            raise NotAnImageError(
                "not a video in a format that can be read, or its header is damaged: save it as MP4"
            ) from exc

    def _choose_stream(self) -> VideoStream:
        # The cover of a piece of music is a stream, too.
        streams = [
            stream
            for stream in self._container.streams.video
            if not stream.disposition & Disposition.attached_pic
        ]
        if not streams:
            raise NotAnImageError("the file has sound, but no video")
        stream = next((s for s in streams if s.disposition & Disposition.default), streams[0])
        context = stream.codec_context
        if context is None:
            raise NotAnImageError("the video is coded in a way that cannot be read: save it as MP4")
        self._check_size(context.width, context.height)
        context.options = {"max_pixels": str(self._task["max_pixels"])}
        context.thread_type = "AUTO"
        context.thread_count = max(1, min(self._task["threads"], os.cpu_count() or 1))
        self._may_skip = context.name in _WITH_UNUSED and not self._sampling["key_frames"]
        if self._sampling["key_frames"]:
            context.skip_frame = "NONKEY"
        return stream

    def _check_size(self, width: int, height: int) -> None:
        most = self._task["max_pixels"]
        if width * height > most:
            raise ImageTooLargeError(
                f"the video's frames are {width}x{height}, which is more than {most:,} pixels: "
                "make them smaller"
            )

    def _find_length(self) -> float:
        """Seconds; what the file says, or else where its last packet ends."""
        container = self._container
        self._start = _start_of(container, self._stream)
        if container.duration is not None and container.duration > 0:
            length = container.duration / av.time_base
            # Matroska says when the last frame ends.
            from_zero = "matroska" in self._container_name and 0 < self._start < length
            return length - self._start if from_zero else length
        # Recordings of browsers do not say it.
        last = 0.0
        with suppress(av.error.FFmpegError):
            for packet in container.demux():
                self._limit_time()
                last = max(last, self._end_of(packet))
        with suppress(av.error.FFmpegError):
            container.seek(0)
            return last
        # Some formats cannot be searched, but all can be opened again.
        raise NotAnImageError("the video does not say how long it is, and cannot be searched")

    def _end_of(self, packet: Any) -> float:
        at = packet.pts if packet.pts is not None else packet.dts
        if at is None or packet.time_base is None:
            return 0.0
        return float((at + (packet.duration or 0)) * packet.time_base) - self._start

    # --- its frames ---

    def _decode(self) -> str:
        """Send the frames that are wanted; returns what ended it before the end, or nothing."""
        due = _Due(self._sampling, self._length)
        fallback: tuple[float, VideoFrame] | None = None
        reason = ""
        try:
            for at, frame in self._frames(due):
                self._limit_time()
                self._position = max(self._position, at)
                self._report()
                if frame.is_corrupt:
                    self._bad += 1
                    continue
                if due.is_over:
                    break
                if due.takes(at):
                    self._take(at, frame)
                    fallback = None
                elif not self._taken:
                    fallback = at, frame
        except av.error.FFmpegError as exc:
            if isinstance(exc, MemoryError):
                raise
            reason = _said(exc)
        # Nothing was due before the end, as in the second half of a video with one key frame.
        if fallback is not None and not self._taken:
            self._take(*fallback)
        self._is_over = due.is_over
        return reason

    def _frames(self, due: "_Due") -> Iterator[tuple[float, VideoFrame]]:
        """The frames with their times, from the start, less what is far from all that is due."""
        clock = _Clock(self._start, self._stream)
        self._read_until = 0.0
        may_jump = True
        self._may_hop = True
        # Where the last jump or hop began, and what it was for, until a frame is seen.
        jump: tuple[float, float] | None = None
        self._hop: tuple[float, float] | None = None
        packets = self._needed(due, clock)
        while not due.is_over:
            target = due.next
            if may_jump and target - self._position > _JUMPED:
                may_jump = self._seek(target - self._seek_margin)
                if may_jump:
                    jump, self._hop = (self._position, target), None
                    clock.forget()
                    packets = self._needed(due, clock)
            for packet in packets:
                if self._may_skip:
                    at_packet = clock.time_of_packet(packet)
                    is_early = at_packet is not None and at_packet < due.next - _EARLY
                    self._stream.codec_context.skip_frame = "NONREF" if is_early else "DEFAULT"
                back_to: float | None = None
                for frame in self._decoded(packet):
                    at = clock.time(frame)
                    if jump is not None:
                        before, wanted = jump
                        jump = None
                        # Without key frames in between, each jump would read the same again; and
                        # some formats find a later place than they are asked for.
                        may_jump = before < at <= wanted + _EARLY
                        if at > wanted + _EARLY and not self._sampling["key_frames"]:
                            back_to = before
                            break
                    if self._hop is not None:
                        before, landing = self._hop
                        if at < landing - _EARLY:  # made of what was left out, too
                            continue
                        self._hop = None
                        if at > landing + _EARLY or not frame.key_frame:
                            # The file calls a key frame what is none.
                            self._may_hop = False
                            back_to = before
                            break
                    yield at, frame
                if back_to is not None:
                    self._seek(back_to)
                    clock.forget()
                    packets = self._needed(due, clock)
                    break
                is_far = due.next - self._position > _JUMPED
                if may_jump and jump is None and is_far:
                    break
            else:
                return

    def _needed(self, due: "_Due", clock: "_Clock") -> Iterator[Any]:
        """The packets of the stream from here on, less those that nothing that is due is made of.

        It reads ahead: what comes before a key frame is not needed, if that is shown before the
        next time or at it.
        """
        held: list[Any] = []
        size = 0
        # The latest times of those that were decoded, and of all.
        decoded = latest = float("-inf")
        for packet in self._container.demux():
            self._read_until = max(self._read_until, self._end_of(packet))
            if packet.stream is not self._stream:
                continue
            # VP9 does not skip by itself; the empty packet asks for what is left.
            if self._sampling["key_frames"] and packet.size and not packet.is_keyframe:
                continue
            at = clock.time_of_packet(packet)
            if packet.size and (at is None or at < latest - _GOES_BACK):
                self._may_hop = False
            is_early = False
            if self._may_hop and at is not None:
                latest = max(latest, at)
                is_early = at < due.next - _EARLY
                is_start = packet.is_keyframe and (
                    at <= due.next + _EARLY or self._sampling["key_frames"]
                )
                if held and is_start and decoded < due.next - _EARLY:
                    held, size = [], 0
                    self._stream.codec_context.flush_buffers()
                    self._hop = self._position, at
            held.append(packet)
            size += packet.size
            if is_early and size <= _MOST_AHEAD:
                continue
            decoded = max(decoded, latest)
            yield from held
            held, size = [], 0

    def _seek(self, target: float) -> bool:
        """Go to the key frame before a time; returns whether the format can do it."""
        place = round((max(0.0, target) + self._start) * av.time_base)
        try:
            self._container.seek(place, backward=True)
        except av.error.FFmpegError:
            return False
        return True

    def _decoded(self, packet: Any) -> list[VideoFrame]:
        try:
            return cast("list[VideoFrame]", packet.decode())
        except av.error.FFmpegError as exc:
            if isinstance(exc, MemoryError):
                raise
            # What follows may be whole.
            self._bad += 1
            self._error = _said(exc)
            return []

    def _take(self, at: float, frame: VideoFrame) -> None:
        self._check_size(frame.width, frame.height)
        width, height = _shown_size(frame, self._stream)
        factor = max(1, min(width, height) // self._task["min_side"])
        image = _to_rgb(frame, (-(-width // factor), -(-height // factor)))
        turn = round(frame.rotation / 90) * 90 % 360
        if turn:
            # Counter-clockwise, as Pillow turns.
            image = image.rotate(turn, expand=True)
            width, height = (height, width) if turn in {90, 270} else (width, height)
        if self._sampling["distinct"] and not self._is_new(image):
            return
        if not self._told:
            self._told = True
            fields = {"width": width, "height": height} | _fields(self._container)
            about = {"duration": self._length, "size": (width, height), "fields": fields}
            _send(self._parent, about)
        self._taken += 1
        _send(self._parent, {"position": self._position, "time": at, "size": image.size})
        self._parent.send_bytes(image.tobytes())
        self._reported = time.monotonic()

    def _is_new(self, image: Image.Image) -> bool:
        small = image.convert("L").resize((_GREY_SIDE, _GREY_SIDE), Image.Resampling.BOX)
        grey = np.asarray(small, np.float32)
        last = self._last_grey
        if last is not None and float(np.abs(grey - last).mean()) < _LEAST_DIFFERENCE:
            return False
        self._last_grey = grey
        return True

    def _report(self) -> None:
        now = time.monotonic()
        if self._told and now - self._reported > _SECONDS_BETWEEN_REPORTS:
            self._reported = now
            _send(self._parent, {"position": self._position})

    def _damage(self, reason: str) -> str:
        """What to tell of a file that is not whole."""
        if self._is_over:
            return ""
        missing = self._length - max(self._read_until, self._position)
        is_sure = self._container_name not in _UNSURE
        if is_sure and missing > max(_MISSING_SECONDS, _MISSING_SHARE * self._length):
            return (
                f"it ends early or is damaged: read up to {_shown(self._position)} of "
                f"{_shown(self._length)}"
            )
        if self._bad or reason:
            return f"it is damaged in places, which were left out ({reason or 'bad pictures'})"
        return ""


class _Due:
    """Which times are wanted next."""

    def __init__(self, sampling: dict[str, Any], length: float) -> None:
        self._times: list[float] | None = sampling["times"]
        rate = float(sampling["frames_per_second"])
        most = sampling["max_frames"]
        self._interval = 1 / rate
        self._first = 0.0
        if most is not None and most * self._interval < length:
            self._interval = length / most
            # The middle of each part, so that one frame is that in the middle of the video.
            self._first = self._interval / 2
        self._number = 0

    @property
    def next(self) -> float:
        if self._times is not None:
            return self._times[self._number] if self._number < len(self._times) else float("inf")
        return self._first + self._number * self._interval

    @property
    def is_over(self) -> bool:
        return self._times is not None and self._number >= len(self._times)

    def takes(self, at: float) -> bool:
        """Whether a frame at this time is the first at or after the time that is due."""
        if at < self.next - _EARLY:
            return False
        if self._times is not None:
            self._number += 1
        else:
            passed = (at - self._first + _EARLY) / self._interval
            self._number = int(passed) + 1
        return True


class _Clock:
    """Times of frames in seconds from the start of the video, which never go back."""

    def __init__(self, start: float, stream: VideoStream) -> None:
        self._start = start
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self._step = float(1 / rate)
        self._last: float | None = None
        self._offset = 0.0

    def forget(self) -> None:
        """After a jump the next time may be any."""
        self._last = None

    def time_of_packet(self, packet: Any) -> float | None:
        if packet.pts is None or packet.time_base is None:
            return None
        return float(packet.pts * packet.time_base) - self._start + self._offset

    def time(self, frame: VideoFrame) -> float:
        if frame.pts is not None and frame.time_base:
            at = float(frame.pts * frame.time_base) - self._start + self._offset
        elif frame.dts is not None and frame.time_base:
            at = float(frame.dts * frame.time_base) - self._start + self._offset
        else:
            at = 0.0 if self._last is None else self._last + self._step
        if self._last is not None and at < self._last - _GOES_BACK:
            self._offset += self._last + self._step - at
            at = self._last + self._step
        self._last = at
        return round(max(0.0, at), _DIGITS)


def _refuse(url: str, *_: Any) -> Any:
    raise PermissionError(f"{url} is another file")


def _start_of(container: InputContainer, stream: VideoStream) -> float:
    """Where players show 0:00; transport streams, for one, begin anywhere."""
    if container.start_time is not None:
        return container.start_time / av.time_base
    if stream.start_time is not None and stream.time_base is not None:
        return float(stream.start_time * stream.time_base)
    return 0.0


def _shown_size(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """Width and height with square pixels, before it is turned."""
    width, height = frame.width, frame.height
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    if aspect and aspect != 1 and Fraction(1, _MOST_ASPECT) <= aspect <= _MOST_ASPECT:
        width = max(1, round(width * aspect))
    return width, height


def _to_rgb(frame: VideoFrame, size: tuple[int, int]) -> Image.Image:
    is_hd = frame.colorspace == _UNSPECIFIED and frame.height >= _LEAST_HD_LINES
    hdr = is_hdr(frame.color_trc)
    reduced = frame.reformat(
        *size,
        format="rgb48le" if hdr else "rgb24",
        src_colorspace=Colorspace.ITU709 if is_hd else None,
        interpolation=_SWS,
        threads=1,
    )
    if hdr:
        return tone_mapped(reduced.to_ndarray().astype(np.uint16), frame.color_trc)
    return Image.fromarray(reduced.to_ndarray())


# --- what the file tells of itself ---

_PLACE: Final = re.compile(r"([+-]\d{2}(?:\.\d+)?)([+-]\d{3}(?:\.\d+)?)")
_QUICKTIME: Final = "com.apple.quicktime."


def _fields(container: InputContainer) -> dict[str, Any]:
    """Format, date, camera and place, as `image_search.file_metadata` has them."""
    names = container.format.name.split(",")
    fields: dict[str, Any] = {"format": next((_FORMATS[n] for n in names if n in _FORMATS), "")}
    said = {name.lower(): value for name, value in container.metadata.items()}
    # The clock on the wall, where the camera says it, and else UTC.
    for name in (f"{_QUICKTIME}creationdate", "creation_time", "date"):
        with suppress(KeyError, ValueError):
            moment = datetime.fromisoformat(said[name].strip())
            fields["taken"] = int(moment.replace(tzinfo=UTC).timestamp())
            break
    words = [said.get(f"{_QUICKTIME}{key}") or said.get(key) or "" for key in ("make", "model")]
    if camera := " ".join(" ".join(words).split())[:100]:
        fields["camera"] = camera
    place = _PLACE.match(said.get(f"{_QUICKTIME}location.iso6709") or said.get("location") or "")
    if place:
        fields["latitude"], fields["longitude"] = float(place[1]), float(place[2])
    return fields


def _said(exc: Exception) -> str:
    return str(getattr(exc, "strerror", None) or exc)


def _shown(seconds: float) -> str:
    """As in 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
