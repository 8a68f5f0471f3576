"""Image files in a folder."""

import os
import stat
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from worker.sources.archive import TAR_SUFFIXES
from worker.sources.files import (
    START_BYTES,
    Choice,
    Chosen,
    File,
    Read,
    is_hidden,
    modified,
    open_file,
    open_files,
    reading,
)
from worker.sources.names import as_text, printable
from worker.sources.parquet import PARQUET_SUFFIXES, open_parquet
from worker.sources.skipped import Kind
from worker.sources.source import Source
from worker.sources.webdataset import is_webdataset, open_webdataset

_Identity = tuple[int, int]


def open_folder(path: Path, choice: Choice) -> Source:
    """The image files in a folder and its sub-folders; links are followed.

    Where there are none, but parquet files or shards of WebDataset, the images in those.
    """
    chosen = Chosen()
    _Walk(path, chosen).run()
    parquet = [name for name in chosen.parts if name.lower().endswith(PARQUET_SUFFIXES)]
    if not chosen.files and parquet:
        chosen.skip_parts(but=parquet)
        return open_parquet(path, sorted(parquet), chosen.skipped, choice)
    shards = sorted(name for name in chosen.parts if name.lower().endswith(TAR_SUFFIXES))
    if not chosen.files and shards and is_webdataset(path / shards[0]):
        chosen.skip_parts(but=shards)
        return open_webdataset(path, shards, chosen.skipped, choice)

    def read(keys: Collection[str]) -> Iterator[Read]:
        for key in sorted(keys):
            is_video = key in chosen.videos
            with reading(
                partial(open_file, path / key), is_video=is_video, on_disk=True
            ) as content:
                yield key, content, modified(path / key)

    return open_files(path, path.resolve().name, chosen, read, choice)


def is_image(path: Path) -> bool:
    """Whether a file is an image or a video, by its name or its content."""
    return bool(_chosen(path).files)


def open_image_file(path: Path, choice: Choice) -> Source:
    """One image or video file: it has the id that it has in its folder, and no label."""
    file = path.resolve()
    chosen = Chosen()
    chosen.files.append(File(file.name, file.name))
    is_video = bool(_chosen(path).videos)
    chosen.videos.update(chosen.files[0].key for _ in range(is_video))

    def read(keys: Collection[str]) -> Iterator[Read]:
        for key in keys:
            with reading(partial(open_file, file), is_video=is_video, on_disk=True) as content:
                yield key, content, modified(file)

    title = printable(as_text(str(path)))
    return open_files(file.parent, file.parent.name, chosen, read, choice, title)


def _chosen(path: Path) -> Chosen:
    chosen = Chosen()
    chosen.add(File(path.name, path.name.lstrip(".")), partial(_start, path))
    return chosen


class _Walk:
    """Lists a folder; each folder is visited once, so that links cannot lead round in circles."""

    def __init__(self, root: Path, chosen: Chosen) -> None:
        self._root = root
        self._chosen = chosen
        self._visited: set[_Identity] = set()
        # What holds the source is not in it, even where a link leads there.
        self._above = {_identity(os.stat(parent)) for parent in root.resolve().parents}
        self._links: list[str] = []

    def run(self) -> None:
        self._visit("", os.stat(self._root))
        # After all folders that are there by themselves, so that those keep their names.
        while self._links:
            links, self._links = sorted(self._links), []
            for name in links:
                self._follow(name)

    def _follow(self, name: str) -> None:
        try:
            status = os.stat(self._root / name)
        except OSError:
            self._chosen.skip(Kind.BROKEN_LINK, name)
            return
        if _identity(status) in self._visited | self._above:
            self._chosen.skip(Kind.LOOP, name)
        else:
            self._visit(name, status)

    def _visit(self, name: str, status: os.stat_result) -> None:
        pending = [(name, status)]
        while pending:
            folder, status = pending.pop()
            self._visited.add(_identity(status))
            try:
                with os.scandir(self._root / folder) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError:
                if not folder:
                    raise
                self._chosen.skip(Kind.UNREADABLE, folder)
                continue
            is_searchable = _is_searchable(entries)
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                # What the folder itself tells costs nothing more, as there may be a million files.
                if is_searchable and entry.is_file(follow_symlinks=False):
                    self._take(name)
                else:
                    self._add(name, entry, pending)

    def _add(
        self,
        name: str,
        entry: "os.DirEntry[str]",
        pending: list[tuple[str, os.stat_result]],
    ) -> None:
        if is_hidden(entry.name):
            self._chosen.skip(Kind.HIDDEN, name)
            return
        try:
            status = entry.stat()
        except OSError:
            self._chosen.skip(Kind.BROKEN_LINK if entry.is_symlink() else Kind.UNREADABLE, name)
            return
        if stat.S_ISDIR(status.st_mode):
            if entry.is_symlink():
                self._links.append(name)
            elif _identity(status) not in self._visited:
                pending.append((name, status))
        elif stat.S_ISREG(status.st_mode):
            self._take(name)
        else:
            self._chosen.skip(Kind.SPECIAL, name)

    def _take(self, name: str) -> None:
        self._chosen.add(File(name, name), partial(_start, self._root, name))


def _is_searchable(entries: "list[os.DirEntry[str]]") -> bool:
    """Whether what a folder has can be reached, and not only listed."""
    try:
        for entry in entries[:1]:
            entry.stat(follow_symlinks=False)
    except OSError:
        return False
    return True


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _start(path: Path, name: str = "") -> bytes:
    with open_file(path / name if name else path) as opened:
        return opened.read(START_BYTES)
