"""Where images come from: CIFAR-10, a folder, a zip or tar archive, or the drawn sample.

A source yields its items in the same order and with the same ids every time.
"""

import hashlib
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, Literal
from urllib.parse import quote

import numpy as np

from image_search import images
from image_search.download import download
from image_search.errors import ImageError, SourceError
from image_search.values import MAX_ID_LENGTH, Metadata, Pixels
from worker import sample

Split = Literal["train", "test"]

# https://www.cs.toronto.edu/~kriz/cifar.html, "CIFAR-10 binary version"
_CIFAR10_FILE: Final = "cifar-10-binary.tar.gz"
_CIFAR10_URL: Final = f"https://www.cs.toronto.edu/~kriz/{_CIFAR10_FILE}"
_CIFAR10_MD5: Final = "c32a1d4ab5d03f1284b67883e8d87530"
_CIFAR10_BATCHES: Final[dict[Split, list[str]]] = {
    "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
    "test": ["test_batch.bin"],
}
_CIFAR10_CLASSES: Final = "batches.meta.txt"
_CIFAR10_SIDE: Final = 32
_CIFAR10_RECORD_BYTES: Final = 1 + 3 * _CIFAR10_SIDE**2

# A file this large is no photograph, and would not fit into a worker's memory beside others.
_MAX_FILE_BYTES: Final = 256 * 1024 * 1024
_DAMAGE: Final = (
    OSError,
    EOFError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    UnicodeDecodeError,
)
_ZIP_SUFFIXES: Final = (".zip",)
_TAR_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


@dataclass(frozen=True)
class Item:
    """One image to ingest.

    `content` is an image file's bytes, or uint8 RGB pixels [h, w, 3], or why it cannot be read.
    """

    id: str
    label: str | None
    content: bytes | Pixels | ImageError
    metadata: Metadata


@dataclass(frozen=True)
class Source:
    """A named, repeatable stream of `total` items."""

    name: str
    total: int
    items: Callable[[], Iterator[Item]] = field(repr=False)
    ignored: int = 0  # files that are not images, by their names
    # The items at these positions, in the same order, where that costs less than all.
    some: Callable[[Collection[int]], Iterator[Item]] | None = field(default=None, repr=False)

    def pick(self, positions: Collection[int]) -> Iterator[Item]:
        """The items at these positions, in order."""
        if self.some is not None:
            return self.some(positions)
        return (item for number, item in enumerate(self.items()) if number in positions)


def open_source(source: str, *, split: Split, data_dir: Path) -> Source:
    """The source that the command line names: `cifar10`, `sample`, or a path.

    Raises SourceError when it does not exist, is damaged, or holds no images, and DownloadError
    when CIFAR-10 cannot be downloaded.
    """
    if source == "sample":
        return _sample(split)
    if source == "cifar10":
        archive = data_dir / "downloads" / _CIFAR10_FILE
        return _cifar10(download(_CIFAR10_URL, archive, md5=_CIFAR10_MD5), split)
    path = Path(source)
    with _damage_named(path):
        if not os.path.exists(source):
            raise SourceError(
                f"there is no {source!r}: give cifar10, sample, auto, or the path of a folder, "
                "zip or tar"
            )
        if path.is_dir():
            if (path / _CIFAR10_BATCHES[split][0]).exists():
                return _cifar10(path, split)
            return _folder(path)
        if path.name.lower().endswith(_ZIP_SUFFIXES):
            return _zip(path)
        if path.name.lower().endswith(_TAR_SUFFIXES):
            return _cifar10(path, split) if _is_cifar10(path) else _tar(path)
    raise SourceError(f"{source} is neither a folder nor a zip or tar archive")


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as exc:
        reason = str(exc) or "it ends too early"
        raise SourceError(f"{path} cannot be read, or is damaged: {reason}") from exc


def _sample(split: Split) -> Source:
    seeds = range(sample.IMAGES_PER_KIND)
    if split == "test":
        seeds = range(seeds.stop, seeds.stop + sample.TEST_IMAGES_PER_KIND)

    def items() -> Iterator[Item]:
        for kind in sample.KINDS:
            for seed in seeds:
                yield Item(
                    id=f"sample-{kind}-{seed:03d}",
                    label=kind,
                    content=np.asarray(sample.draw(kind, seed)),
                    metadata={"source": "sample"},
                )

    name = "sample" if split == "train" else f"sample ({split})"
    return Source(name, len(sample.KINDS) * len(seeds), items)


# --- CIFAR-10 ---------------------------------------------------------------------------------


def _is_cifar10(path: Path) -> bool:
    """Whether a tar archive begins like CIFAR-10's; only its first members are read."""
    with tarfile.open(path) as archive:
        return any(
            PurePosixPath(member.name).name == _CIFAR10_CLASSES
            for member, _ in zip(archive, range(10), strict=False)
        )


def _cifar10(path: Path, split: Split) -> Source:
    """An archive or an unpacked folder in the dataset's binary layout."""
    with _damage_named(path):
        files = _cifar10_files(path, split)
    classes = files[_CIFAR10_CLASSES].decode("ascii", "replace").split()
    batches = []
    for name in _CIFAR10_BATCHES[split]:
        content = files[name]
        if not content or len(content) % _CIFAR10_RECORD_BYTES:
            raise SourceError(
                f"{path}: {name} has {len(content):,} bytes, which is not a whole number of "
                f"{_CIFAR10_RECORD_BYTES:,}-byte records"
            )
        batches.append(np.frombuffer(content, np.uint8).reshape(-1, _CIFAR10_RECORD_BYTES))
    if max(int(batch[:, 0].max()) for batch in batches) >= len(classes):
        raise SourceError(f"{path}: a label has no name in {_CIFAR10_CLASSES}")

    def items() -> Iterator[Item]:
        number = 0
        for batch in batches:
            labels = batch[:, 0]
            planes = batch[:, 1:].reshape(-1, 3, _CIFAR10_SIDE, _CIFAR10_SIDE)
            pixels = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
            for label, image in zip(labels, pixels, strict=True):
                yield Item(
                    id=f"cifar10-{split}-{number:05d}",
                    label=classes[label],
                    content=image,
                    metadata={"source": "cifar10", "split": split},
                )
                number += 1

    return Source(f"cifar10 ({split})", sum(map(len, batches)), items)


def _cifar10_files(path: Path, split: Split) -> dict[str, bytes]:
    wanted = {*_CIFAR10_BATCHES[split], _CIFAR10_CLASSES}
    if path.is_dir():
        files = {name: (path / name).read_bytes() for name in wanted if (path / name).exists()}
    else:
        files = {}
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                opened = archive.extractfile(member) if name in wanted else None
                if opened is not None:
                    files[name] = opened.read()
    missing = sorted(wanted - set(files))
    if missing:
        raise SourceError(
            f"{path} is not CIFAR-10 in its binary layout: {', '.join(missing)} missing"
        )
    return files


# --- folders and archives of image files --------------------------------------------------------


def _folder(path: Path) -> Source:
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
            yield name, _read(size, file.read_bytes)

    return _files(path, path.resolve().name, names, read)


def _zip(path: Path) -> Source:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist() if not member.is_dir()}
    if any(member.flag_bits & 1 for member in members.values()):
        raise SourceError(f"{path} is encrypted: unpack it first")

    def read(names: set[str]) -> Iterator[tuple[str, bytes | ImageError]]:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(names):
                yield name, _read(members[name].file_size, partial(archive.read, members[name]))

    return _files(path, path.stem, sorted(members), read)


def _tar(path: Path) -> Source:
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
                    yield member.name, _read(member.size, file.read)

    stem = re.sub(r"\.(tar(\.\w+)?|t\w+)$", "", path.name, flags=re.IGNORECASE)
    return _files(path, stem, sorted(offsets), read)


def _read(size: int, content: Callable[[], bytes]) -> bytes | ImageError:
    """The content, or why there is none: one bad file does not stop the rest."""
    try:
        if size > _MAX_FILE_BYTES:
            return ImageError(f"the file has more than {_MAX_FILE_BYTES:,} bytes")
        return content()
    except _DAMAGE as exc:
        return ImageError(f"the file cannot be read: {exc}")


def _files(
    path: Path,
    source_name: str,
    names: Iterable[str],
    read: Callable[[set[str]], Iterator[tuple[str, bytes | ImageError]]],
) -> Source:
    """Image files by their names inside a folder or archive; the first folder is the label."""
    suffixes = images.file_suffixes()
    wanted: dict[str, tuple[str, ...]] = {}
    ignored = 0
    for name in names:
        parts = tuple(part for part in PurePosixPath(name).parts if part not in {"/", ".."})
        # Hidden files, and macOS' resource forks in zips, are no pictures.
        if any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        if PurePosixPath(name).suffix.lower() in suffixes:
            wanted[name] = parts
        else:
            ignored += 1
    if not wanted:
        raise SourceError(
            f"{path} holds no images: expected files such as .jpg or .png, flat or in one "
            "sub-folder a label"
        )
    # An archive made of a folder holds that folder.
    if all(len(parts) > 1 and parts[0] == source_name for parts in wanted.values()):
        wanted = {name: parts[1:] for name, parts in wanted.items()}

    def some(positions: Collection[int]) -> Iterator[Item]:
        return read_items({name for number, name in enumerate(wanted) if number in positions})

    def read_items(names: set[str]) -> Iterator[Item]:
        with _damage_named(path):
            for name, content in read(names):
                parts = wanted[name]
                relative = os.fsencode("/".join(parts))
                yield Item(
                    id=_id(os.fsencode(source_name) + b"/" + relative),
                    label=_text(os.fsencode(parts[0])) if len(parts) > 1 else None,
                    content=content,
                    metadata={"source": source_name, "path": _text(relative)},
                )

    return Source(str(path), len(wanted), lambda: read_items(set(wanted)), ignored, some)


def _id(path: bytes) -> str:
    """A path as printable ASCII, percent-encoded where need be, cut to the length of an id."""
    encoded = quote(path, safe="/ !#$&'()+,;=@[]{}~^`")
    if len(encoded) <= MAX_ID_LENGTH:
        return encoded
    digest = hashlib.sha256(path).hexdigest()
    return f"{encoded[: MAX_ID_LENGTH - len(digest) - 1]}~{digest}"


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
