"""CIFAR-10, downloaded, packed or unpacked, in its binary version or in that for Python."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from image_search.download import download
from image_search.errors import SourceError
from image_search.values import Pixels
from worker.sources import pickled
from worker.sources.names import printable
from worker.sources.source import Item, Source, Split, damage_named

# https://www.cs.toronto.edu/~kriz/cifar.html, "CIFAR-10 binary version"
_FILE: Final = "cifar-10-binary.tar.gz"
_URL: Final = f"https://www.cs.toronto.edu/~kriz/{_FILE}"
_MD5: Final = "c32a1d4ab5d03f1284b67883e8d87530"
_SPLITS: Final[tuple[Split, ...]] = ("train", "test")
_SIDE: Final = 32
_RECORD_BYTES: Final = 1 + 3 * _SIDE**2
# The largest file has 31 MB.
_MAX_FILE_BYTES: Final = 256 * 1024 * 1024


@dataclass(frozen=True)
class _Version:
    name: str
    folder: str
    classes: str
    suffix: str

    def batches(self, split: Split) -> list[str]:
        if split == "test":
            return [f"test_batch{self.suffix}"]
        return [f"data_batch_{number}{self.suffix}" for number in range(1, 6)]


_BINARY: Final = _Version("binary", "cifar-10-batches-bin", "batches.meta.txt", ".bin")
_PYTHON: Final = _Version("Python", "cifar-10-batches-py", "batches.meta", "")


def download_cifar10(data_dir: Path) -> Path:
    """The path of the dataset's archive, downloaded if need be; raises DownloadError."""
    return download(_URL, data_dir / "downloads" / _FILE, md5=_MD5)


def find_cifar10(path: Path) -> Path | None:
    """The folder or archive, or the folder in this one, that holds the dataset, if it does.

    Of a tar archive only the first members are read.
    """
    if path.is_dir():
        folders = [path, *(path / version.folder for version in (_BINARY, _PYTHON))]
        return next((folder for folder in folders if _version_in(folder)), None)
    with tarfile.open(path) as archive:
        names = (PurePosixPath(member.name).name for member in islice(archive, 10))
        # To go on to a member is to decompress those before it.
        return path if any(name in {_BINARY.classes, _PYTHON.classes} for name in names) else None


def _version_in(folder: Path) -> _Version | None:
    """The version that a folder holds, or a part of it; the classes alone are no images."""
    for version in (_BINARY, _PYTHON):
        batches = (batch for split in _SPLITS for batch in version.batches(split))
        if any((folder / batch).is_file() for batch in batches):
            return version
    return None


def open_cifar10(path: Path, split: Split) -> Source:
    """An archive or an unpacked folder in one of the dataset's layouts.

    Ids and pixels are the same in all of them.
    """
    if split not in _SPLITS:
        raise SourceError(f"CIFAR-10 has no split {split}: its splits are {', '.join(_SPLITS)}")
    title = printable(str(path))
    with damage_named(path):
        version, files = _read_files(path, split)
    read = _binary if version is _BINARY else _python
    classes, batches = read(title, files, version, split)
    if max(int(labels.max()) for labels, _ in batches) >= len(classes):
        raise SourceError(f"{title}: a label has no name in {version.classes}")

    def items() -> Iterator[Item]:
        number = 0
        for labels, flat in batches:
            planes = flat.reshape(-1, 3, _SIDE, _SIDE)
            pixels = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
            for label, image in zip(labels, pixels, strict=True):
                yield Item(
                    id=f"cifar10-{split}-{number:05d}",
                    label=classes[label],
                    content=image,
                    metadata={"source": "cifar10", "split": split},
                )
                number += 1

    total = sum(len(labels) for labels, _ in batches)
    return Source(f"cifar10 ({split})", total, items, f"labels: {', '.join(classes)}", _SPLITS)


# Class names, and of each batch labels, uint8 [n], and planes of red, green and blue, [n, 3072].
_Batches = tuple[list[str], list[tuple[Pixels, Pixels]]]


def _binary(title: str, files: dict[str, bytes], version: _Version, split: Split) -> _Batches:
    batches = []
    for name in version.batches(split):
        content = files[name]
        if not content or len(content) % _RECORD_BYTES:
            raise SourceError(
                f"{title}: {name} has {len(content):,} bytes, which is not a whole number of "
                f"{_RECORD_BYTES:,}-byte records"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD_BYTES)
        batches.append((records[:, 0], records[:, 1:]))
    return files[version.classes].decode("ascii", "replace").split(), batches


def _python(title: str, files: dict[str, bytes], version: _Version, split: Split) -> _Batches:
    batches = []
    name = version.classes
    try:
        classes = pickled.names(pickled.load(files[name])["label_names"])
        for name in version.batches(split):
            batch = pickled.load(files[name])
            labels = np.array(batch["labels"], np.uint8)
            planes = batch["data"].to_uint8()
            if planes.shape != (len(labels), _RECORD_BYTES - 1) or not len(labels):
                raise ValueError(f"it has {len(labels)} labels, and data {list(planes.shape)}")
            batches.append((labels, planes))
    except pickled.PICKLE_DAMAGE as exc:
        reason = printable(str(exc)) or type(exc).__name__
        raise SourceError(f"{title}: {name} is not a batch of CIFAR-10: {reason}") from exc
    return classes, batches


def _read_files(path: Path, split: Split) -> tuple[_Version, dict[str, bytes]]:
    """The version, and by name the files of a split."""
    wanted = {
        name
        for version in (_BINARY, _PYTHON)
        for name in (version.classes, *version.batches(split))
    }
    files = {}
    if path.is_dir():
        for name in wanted:
            if (path / name).is_file():
                with (path / name).open("rb") as file:
                    files[name] = file.read(_MAX_FILE_BYTES)
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                opened = archive.extractfile(member) if name in wanted else None
                if opened is not None:
                    files[name] = opened.read(_MAX_FILE_BYTES)
    version = _PYTHON if _PYTHON.classes in files or _PYTHON.batches(split)[0] in files else _BINARY
    if _BINARY.classes in files or any(name in files for name in _BINARY.batches(split)):
        version = _BINARY
    missing = sorted({version.classes, *version.batches(split)} - set(files))
    if missing:
        raise SourceError(
            f"{printable(str(path))} is not CIFAR-10 in its {version.name} layout: "
            f"{', '.join(missing)} missing"
        )
    return version, files
