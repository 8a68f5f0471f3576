"""Image files in a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from image_search.errors import ImageError
from worker.sources.files import open_files, read_bounded
from worker.sources.source import Source


def open_folder(path: Path) -> Source:
    """The image files in a folder and its sub-folders."""
    names = sorted(
        (Path(parent) / name).relative_to(path).as_posix()
        for parent, _, files in os.walk(path)
        for name in files
    )

    def read(names: set[str]) -> Iterator[tuple[str, bytes | ImageError]]:
        for name in sorted(names):
            file = path / name
            # A file that has gone is found out by reading it.
            size = file.stat().st_size if file.exists() else 0
            yield name, read_bounded(size, file.read_bytes)

    return open_files(path, path.resolve().name, names, read)
