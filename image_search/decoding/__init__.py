"""Decoding of image files that cost as much as their makers like: within limits, or not at all.

What is small and plain is decoded by its caller. All else is decoded by processes that are limited
in memory and time, and replaced when they end by it:

    caller's thread --(file)--> a process of its own --(reduced RGB pixels)--> caller's thread
"""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from queue import LifoQueue
from typing import Any, Final, Self

from PIL import Image

from image_search import file_metadata, images
from image_search.decoding.files import open_memory, read_and_empty, write_whole
from image_search.decoding.plain import is_plain
from image_search.decoding.starting import how_it_ended, start
from image_search.errors import (
    ImageError,
    ImageTooCostlyError,
    ImageTooLargeError,
    NotAnImageError,
)

__all__ = ["Decoder", "Limits", "is_plain"]

_MIB: Final = 1024 * 1024
# A process ends after so many images, and with it what its libraries do not give back.
_MOST_TASKS: Final = 1000


@dataclass(frozen=True)
class Limits:
    """What decoding one image may take in a process of its own.

    Memory is in bytes beyond what such a process needs when idle. An image for which `memory` is
    not enough gets a second try with `large_memory`, one at a time. The seconds are for each try:
    of CPU time, and by the clock.
    """

    memory: int = 224 * _MIB
    large_memory: int = 416 * _MIB
    cpu_seconds: float = 4.0
    wall_seconds: float = 60.0


class Decoder:
    """Decodes image files; costly ones in at most `processes` processes, within `limits`.

    A process is started when it is needed, in about 0.3 s, and stays. Safe to use from several
    threads; more than there are processes wait for each other.
    """

    def __init__(
        self, max_pixels: int, *, processes: int = 2, limits: Limits | None = None
    ) -> None:
        self.max_pixels = max_pixels
        self._limits = limits or Limits()
        self._large = threading.Lock()
        # The process that was used last is used next, so that no more are started than needed.
        self._idle: LifoQueue[_Process | None] = LifoQueue()
        self._count = processes
        for _ in range(processes):
            self._idle.put(None)
        self._processes: set[_Process] = set()
        self._changed = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, at once; who waits for them gets ImageTooCostlyError."""
        with self._changed:
            self._closed = True
            for process in self._processes:
                process.kill()
        # Their users give them back now.
        for given_back in [self._idle.get() for _ in range(self._count)]:
            if given_back is not None:
                given_back.close()
            self._idle.put(None)

    def decode(self, content: bytes, *, min_side: int) -> Image.Image:
        """What `images.decode` makes of `content`.

        Raises what that raises, and ImageTooCostlyError for what passes the limits.
        """
        if is_plain(content, min_side):
            return images.decode(content, max_pixels=self.max_pixels, min_side=min_side)
        try:
            return self._try(content, min_side, self._limits.memory)
        except _FailedError as exc:
            if not exc.needs_memory:
                raise exc.error from exc
        with self._large:
            try:
                return self._try(content, min_side, self._limits.large_memory)
            except _FailedError as exc:
                raise exc.error from exc

    def _try(self, content: bytes, min_side: int, memory: int) -> Image.Image:
        task = {
            "max_pixels": self.max_pixels,
            "min_side": min_side,
            "memory": memory,
            "cpu": self._limits.cpu_seconds,
        }
        with self._process() as process:
            answer, pixels = process.run(content, task, self._limits.wall_seconds)
        if pixels is not None:
            image = Image.frombytes("RGB", tuple(answer["size"]), pixels)
            image.info.update(file_metadata.checked(answer["info"]))
            return image
        raise _failure(answer, self._limits, memory)

    @contextmanager
    def _process(self) -> Iterator["_Process"]:
        process: _Process | None = self._idle.get()
        try:
            process = self._without_spent(process)
            with self._changed:
                if self._closed:
                    raise ImageTooCostlyError("decoding was stopped")
                if process is None:
                    process = _Process()
                    self._processes.add(process)
            yield process
        finally:
            self._idle.put(self._without_spent(process))

    def _without_spent(self, process: "_Process | None") -> "_Process | None":
        if process is None or not process.is_spent:
            return process
        with self._changed:
            self._processes.discard(process)
        process.close()
        return None


class _FailedError(Exception):
    """An image was not decoded; `needs_memory` if it might be with more memory."""

    def __init__(self, error: ImageError, *, needs_memory: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.needs_memory = needs_memory


def _failure(answer: dict[str, Any], limits: Limits, memory: int) -> _FailedError:
    message = answer.get("message", "")
    match answer["error"]:
        case "not_an_image":
            return _FailedError(NotAnImageError(message))
        case "too_large":
            return _FailedError(ImageTooLargeError(message))
        case "memory":
            costly = ImageTooCostlyError(
                f"the image takes more than {memory // _MIB} MiB of memory to decode: make it "
                "smaller, or save it as a JPEG that is not progressive"
            )
            return _FailedError(costly, needs_memory=True)
        case "crashed":
            return _FailedError(
                NotAnImageError("the image is damaged: its decoder crashed"), needs_memory=True
            )
        case reason:
            seconds = limits.wall_seconds if reason == "late" else limits.cpu_seconds
            return _FailedError(
                ImageTooCostlyError(
                    f"the image takes more than {seconds:g} s to decode: make it "
                    "smaller, or save it as a JPEG that is not progressive"
                )
            )


class _Process:
    """A process that runs `image_search.decoding.child`; one thread at a time may use it."""

    def __init__(self) -> None:
        self._connection, other = Pipe()
        self._file = open_memory()
        with other:
            self._process = start("child", (other.fileno(), self._file))
        self._tasks = 0
        self._late = False
        self._spent = False

    @property
    def is_spent(self) -> bool:
        """Whether it has ended, or has done enough."""
        return self._spent or self._tasks >= _MOST_TASKS or self._process.poll() is not None

    def run(
        self, content: bytes, task: dict[str, Any], wall_seconds: float
    ) -> tuple[dict[str, Any], bytes | None]:
        """The answer, and the RGB pixels if there are any."""
        self._tasks += 1
        write_whole(self._file, content)
        # Whatever it is waited for, to take the file or to answer, this ends it.
        timer = threading.Timer(wall_seconds, self._end_late)
        timer.daemon = True
        timer.start()
        try:
            self._connection.send_bytes(json.dumps(task | {"bytes": len(content)}).encode())
            # No pickles: a decoder that was taken over by an image could send anything.
            answer = json.loads(self._connection.recv_bytes())
            # What its heap keeps counts: the next try gets a new one, which has all its memory.
            self._spent = answer.get("error") == "memory"
            if "size" not in answer:
                return answer, None
            width, height = answer["size"]
            return answer, read_and_empty(self._file, 3 * width * height)
        except (EOFError, OSError):
            reason = how_it_ended(self._process)
            return {"error": "late" if self._late else reason}, None
        finally:
            timer.cancel()

    def kill(self) -> None:
        """End it; who uses it is answered at once."""
        self._process.kill()

    def close(self) -> None:
        """End it, wait until it has ended, and forget it; nobody may use it any more."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
        os.close(self._file)

    def _end_late(self) -> None:
        self._late = True
        self._process.kill()
