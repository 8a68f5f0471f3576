"""Image files in a zip or tar archive."""

import bz2
import io
import lzma
import posixpath
import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Collection, Iterator
from copy import copy
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, Final, cast

from image_search.errors import SourceError
from worker.sources.files import START_BYTES, Choice, Chosen, File, Read, open_files, reading
from worker.sources.names import decoded, legacy_encoding, printable
from worker.sources.skipped import Kind
from worker.sources.source import Source

ZIP_SUFFIXES: Final = (".zip",)
TAR_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

# https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.4.4 and 4.6.9
_ENCRYPTED: Final = 1
_LZMA_END_MARKER: Final = 1 << 1
_UTF_8: Final = 1 << 11
_UNICODE_PATH: Final = 0x7075
_UNIX: Final = 3
_MAX_PACKED: Final = 256 * 1024 * 1024
# As many links in a row as Linux follows.
_MAX_LINKS: Final = 40


def open_zip(path: Path, choice: Choice) -> Source:
    """The image files in a zip archive."""
    chosen = Chosen()
    with zipfile.ZipFile(path) as archive:
        # Of a file that was added again, the last one counts.
        members = {member.filename: member for member in archive.infolist()}
        if any(member.flag_bits & _ENCRYPTED for member in members.values()):
            raise SourceError(f"{printable(str(path))} is encrypted: unpack it first")
        for name, member in zip(_zip_names(members), members.values(), strict=True):
            kind = stat.S_IFMT(member.external_attr >> 16) if member.create_system == _UNIX else 0
            if name.endswith("/"):
                continue
            if kind == stat.S_IFLNK:
                chosen.skip(Kind.ARCHIVE_LINK, name)
            elif kind not in {0, stat.S_IFREG}:
                chosen.skip(Kind.SPECIAL, name)
            else:
                chosen.add(File(member.filename, name), partial(_start, archive, member))

    def read(keys: Collection[str]) -> Iterator[Read]:
        with zipfile.ZipFile(path) as archive:
            for key in sorted(keys):
                member = members[key]
                open_ = partial(_open_member, archive, member)
                is_video = key in chosen.videos
                with reading(open_, is_video=is_video, size=member.file_size) as content:
                    yield key, content, _modified(member)

    return open_files(path, path.stem, chosen, read, choice)


def _zip_names(members: dict[str, zipfile.ZipInfo]) -> list[str]:
    """Paths with slashes; names without the flag for UTF-8 are in what the archiver's system had.

    Some archivers write UTF-8 without the flag, and some on Windows write backslashes.
    """
    raw = {
        member.filename: _unicode_path(member) or member.orig_filename.encode("cp437")
        for member in members.values()
        if not member.flag_bits & _UTF_8 and not member.orig_filename.isascii()
    }
    legacy = [name for name in raw.values() if not _is_utf_8(name)]
    encoding = legacy_encoding(legacy) if legacy else "cp437"
    names = (decoded(raw[name], encoding) if name in raw else name for name in members)
    return [name.replace("\\", "/") for name in names]


def _is_utf_8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _unicode_path(member: zipfile.ZipInfo) -> bytes | None:
    """The name in UTF-8 that Info-ZIP puts beside the other (APPNOTE.TXT, 4.6.9)."""
    extra = member.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == _UNICODE_PATH and size > 5:
            return extra[9 : 4 + size]
        extra = extra[4 + size :]
    return None


def _modified(member: zipfile.ZipInfo) -> int | None:
    """By the clock of who packed it, as if that were UTC: zip archives name no time zone."""
    try:
        return int(datetime(*member.date_time, tzinfo=UTC).timestamp())
    except ValueError:
        return None


def _start(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with _open_member(archive, member) as file:
        return file.read(START_BYTES)


def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> BinaryIO:
    """Open it for reading in pieces; zipfile unpacks two kinds by the million bytes at once."""
    if member.compress_type not in {zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}:
        return cast("BinaryIO", archive.open(member))
    packed = copy(member)
    packed.compress_type, packed.file_size = zipfile.ZIP_STORED, member.compress_size
    del packed.CRC  # which is of what is unpacked
    stored = archive.open(packed)
    if member.compress_type == zipfile.ZIP_BZIP2:
        return cast("BinaryIO", bz2.BZ2File(stored))
    # APPNOTE.TXT, 5.8.8: two bytes of version, two of the size of the properties, and those.
    with stored:
        header = stored.read(4)
        properties = stored.read(int.from_bytes(header[2:], "little"))
        size = -1 if member.flag_bits & _LZMA_END_MARKER else member.file_size
        alone = properties + size.to_bytes(8, "little", signed=True) + stored.read(_MAX_PACKED)
    return cast("BinaryIO", lzma.LZMAFile(io.BytesIO(alone), format=lzma.FORMAT_ALONE))


def open_tar(path: Path, choice: Choice) -> Source:
    """The image files in a tar archive, compressed or not."""
    chosen = Chosen()
    with tarfile.open(path) as archive:
        members: dict[str, tarfile.TarInfo] = {}
        starts: dict[str, bytes] = {}
        # Reading every header first finds a truncated archive before anything is ingested.
        for member in archive:
            # Of a file that was appended again, the last one counts.
            members[member.name] = member
            if member.isfile() and chosen.is_unclear(member.name):
                starts[member.name] = _start_of(archive, member)
        damage_at_end(archive)
    by_path = {posixpath.normpath(name): member for name, member in members.items()}
    for name, member in members.items():
        if member.isdir():
            continue
        target = _target(name, by_path)
        if target is None:
            chosen.skip(Kind.BROKEN_LINK, name)
        elif target.isdir():
            chosen.skip(Kind.ARCHIVE_LINK, name)
        elif not target.isfile():
            chosen.skip(Kind.SPECIAL, name)
        else:
            chosen.add(File(name, name), partial(starts.__getitem__, target.name))

    def read(keys: Collection[str]) -> Iterator[Read]:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name in keys and members[member.name].offset == member.offset:
                    target = _target(member.name, by_path) or member
                    open_ = partial(extract, archive, target)
                    with reading(open_, is_video=member.name in chosen.videos) as content:
                        yield member.name, content, int(target.mtime)

    return open_files(path, stem_of(path.name), chosen, read, choice)


def stem_of(name: str) -> str:
    """The name of a tar archive without its suffixes."""
    return re.sub(r"\.(tar(\.\w+)?|t\w+)$", "", name, flags=re.IGNORECASE)


def damage_at_end(archive: tarfile.TarFile) -> None:
    """Raise ReadError unless an archive whose headers were all read ends there.

    tarfile takes a damaged header for the end, which is zeros.
    """
    fileobj = cast("IO[bytes]", archive.fileobj)
    fileobj.seek(archive.offset)
    if fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError("a header in it is damaged")


def _start_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    with extract(archive, member) as file:
        return file.read(START_BYTES)


def extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    """Open a file of the archive; raises ReadError if it is none."""
    file = archive.extractfile(member)
    if file is None:
        raise tarfile.ReadError("it is not a file")
    return cast("BinaryIO", file)


def _target(name: str, by_path: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The member that a link leads to, or the member itself; None where there is none."""
    for _ in range(_MAX_LINKS):
        member = by_path.get(posixpath.normpath(name))
        if member is None or not (member.islnk() or member.issym()):
            return member
        folder = posixpath.dirname(member.name) if member.issym() else ""
        name = posixpath.join(folder, member.linkname)
    return None
