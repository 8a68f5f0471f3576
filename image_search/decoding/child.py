"""What runs in a decoding process: one image after another, each within limits.

Started by `image_search.decoding`, which it talks to over one socket. A task is a message of JSON,
and the image is in a file that both have open; the answer is a message of JSON and, if that has a
size, the file then has the RGB pixels. The process knows no secrets and ends with its socket.
"""

import io
import json
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Final

from PIL import Image

from image_search import images
from image_search.decoding.confinement import address_space, confine, limit_memory
from image_search.decoding.files import read_and_empty, write_whole
from image_search.decoding.plain import webp_size
from image_search.errors import ImageError, ImageTooLargeError

# Decoded by libraries that hold the whole picture, up to so many bytes of each pixel.
_WHOLE: Final = {"AVIF", "HEIF", "JPEG", "JPEG2000", "MPO", "TIFF"}
_MOST_BYTES_PER_PIXEL: Final = 20
_HEADER_BYTES: Final = 64 * 1024 * 1024


def main(descriptor: int, file: int) -> None:
    """Decode what is in `file` for each task that comes over the socket `descriptor`."""
    confine()
    held = address_space()
    with Connection(descriptor) as parent, suppress(EOFError, OSError):
        while True:
            task = json.loads(parent.recv_bytes())
            content = read_and_empty(file, task["bytes"])
            limit = held + task["memory"] if held else None
            limit_memory(limit)
            signal.setitimer(signal.ITIMER_PROF, task["cpu"])
            answer, pixels = _decode(content, task, limit)
            signal.setitimer(signal.ITIMER_PROF, 0)
            del content
            if pixels is not None:
                write_whole(file, pixels)
            del pixels
            parent.send_bytes(json.dumps(answer).encode())


def _decode(
    content: bytes, task: dict[str, Any], limit: int | None
) -> tuple[dict[str, Any], bytes | None]:
    try:
        image = images.decode(content, max_pixels=task["max_pixels"], min_side=task["min_side"])
        return {"size": image.size, "info": image.info}, image.tobytes()
    except MemoryError:
        return {"error": "memory"}, None
    except ImageTooLargeError as exc:
        return {"error": "too_large", "message": str(exc)}, None
    except ImageError as exc:
        # What is left of the memory may not do to read the header again.
        limit_memory(limit + _HEADER_BYTES if limit else None)
        error = "memory" if _wanted_memory(content, task["memory"]) else "not_an_image"
        return {"error": error, "message": str(exc)}, None


def _wanted_memory(content: bytes, memory: int) -> bool:
    """Whether a decoder may have failed for want of memory, which each reports as it likes."""
    size = webp_size(content)  # which takes memory to be opened
    if size is None:
        with suppress(Exception), Image.open(io.BytesIO(content)) as image:
            if image.format in _WHOLE:
                size = image.size
    return size is not None and size[0] * size[1] * _MOST_BYTES_PER_PIXEL > memory
