"""Image files in a zip or tar archive."""

import re
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from image_search.errors import ImageError, SourceError
from worker.sources.files import open_files, read_bounded
from worker.sources.source import Source

ZIP_SUFFIXES: Final = (".zip",)
TAR_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


def open_zip(path: Path) -> Source:
    """The image files in a zip archive."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist() if not member.is_dir()}
    if any(member.flag_bits & 1 for member in members.values()):
        raise SourceError(f"{path} is encrypted: unpack it first")

    def read(names: set[str]) -> Iterator[tuple[str, bytes | ImageError]]:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(names):
                yield (
                    name,
                    read_bounded(members[name].file_size, partial(archive.read, members[name])),
                )

    return open_files(path, path.stem, sorted(members), read)


def open_tar(path: Path) -> Source:
    """The image files in a tar archive, compressed or not."""
    with tarfile.open(path) as archive:
        # Reading every header first finds a truncated archive before anything is ingested.
        # Of a file that was appended again, the last one counts; hard links are files, too.
        offsets = {
            member.name: member.offset for member in archive if member.isfile() or member.islnk()
        }
        # tarfile takes a damaged header for the end, which is zeros.
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("a header in it is damaged")

    def read(names: set[str]) -> Iterator[tuple[str, bytes | ImageError]]:
        with tarfile.open(path) as archive:
            for member in archive:
                wanted = member.name in names and offsets[member.name] == member.offset
                file = archive.extractfile(member) if wanted else None
                if file is not None:
                    yield member.name, read_bounded(member.size, file.read)

    stem = re.sub(r"\.(tar(\.\w+)?|t\w+)$", "", path.name, flags=re.IGNORECASE)
    return open_files(path, stem, sorted(offsets), read)
