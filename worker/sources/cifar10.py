"""CIFAR-10 in its binary layout, downloaded, packed or unpacked."""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from image_search.download import download
from image_search.errors import SourceError
from worker.sources.source import Item, Source, Split, damage_named

# https://www.cs.toronto.edu/~kriz/cifar.html, "CIFAR-10 binary version"
_FILE: Final = "cifar-10-binary.tar.gz"
_URL: Final = f"https://www.cs.toronto.edu/~kriz/{_FILE}"
_MD5: Final = "c32a1d4ab5d03f1284b67883e8d87530"
_BATCHES: Final[dict[Split, list[str]]] = {
    "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
    "test": ["test_batch.bin"],
}
_CLASSES: Final = "batches.meta.txt"
_SIDE: Final = 32
_RECORD_BYTES: Final = 1 + 3 * _SIDE**2


def download_cifar10(data_dir: Path) -> Path:
    """The path of the dataset's archive, downloaded if need be; raises DownloadError."""
    return download(_URL, data_dir / "downloads" / _FILE, md5=_MD5)


def is_cifar10_folder(path: Path) -> bool:
    """Whether a folder holds the dataset in its binary layout."""
    return any((path / file).exists() for files in _BATCHES.values() for file in files)


def is_cifar10_archive(path: Path) -> bool:
    """Whether a tar archive begins like CIFAR-10's; only its first members are read."""
    with tarfile.open(path) as archive:
        return any(
            PurePosixPath(member.name).name == _CLASSES
            for member, _ in zip(archive, range(10), strict=False)
        )


def open_cifar10(path: Path, split: Split) -> Source:
    """An archive or an unpacked folder in the dataset's binary layout."""
    if split not in _BATCHES:
        raise SourceError(f"CIFAR-10 has no split {split}: its splits are {', '.join(_BATCHES)}")
    with damage_named(path):
        files = _read_files(path, split)
    classes = files[_CLASSES].decode("ascii", "replace").split()
    batches = []
    for name in _BATCHES[split]:
        content = files[name]
        if not content or len(content) % _RECORD_BYTES:
            raise SourceError(
                f"{path}: {name} has {len(content):,} bytes, which is not a whole number of "
                f"{_RECORD_BYTES:,}-byte records"
            )
        batches.append(np.frombuffer(content, np.uint8).reshape(-1, _RECORD_BYTES))
    if max(int(batch[:, 0].max()) for batch in batches) >= len(classes):
        raise SourceError(f"{path}: a label has no name in {_CLASSES}")

    def items() -> Iterator[Item]:
        number = 0
        for batch in batches:
            labels = batch[:, 0]
            planes = batch[:, 1:].reshape(-1, 3, _SIDE, _SIDE)
            pixels = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
            for label, image in zip(labels, pixels, strict=True):
                yield Item(
                    id=f"cifar10-{split}-{number:05d}",
                    label=classes[label],
                    content=image,
                    metadata={"source": "cifar10", "split": split},
                )
                number += 1

    total = sum(map(len, batches))
    return Source(
        f"cifar10 ({split})", total, items, f"labels: {', '.join(classes)}", tuple(_BATCHES)
    )


def _read_files(path: Path, split: Split) -> dict[str, bytes]:
    wanted = {*_BATCHES[split], _CLASSES}
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
