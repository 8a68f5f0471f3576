"""Where images come from: CIFAR-10, a folder, a zip or tar archive, or the drawn sample.

A source yields its items in the same order and with the same ids every time.
"""

import os
from pathlib import Path

from image_search.errors import SourceError
from worker.sources.archive import TAR_SUFFIXES, ZIP_SUFFIXES, open_tar, open_zip
from worker.sources.cifar10 import (
    download_cifar10,
    is_cifar10_archive,
    is_cifar10_folder,
    open_cifar10,
)
from worker.sources.folder import open_folder
from worker.sources.sample import open_sample
from worker.sources.source import Item, Source, Split, damage_named

__all__ = ["Item", "Source", "Split", "open_source"]


def open_source(source: str, *, split: Split, data_dir: Path) -> Source:
    """The source that the command line names: `cifar10`, `sample`, or a path.

    Raises SourceError when it does not exist, is damaged, or holds no images, and DownloadError
    when CIFAR-10 cannot be downloaded.
    """
    if source == "sample":
        return open_sample(split)
    if source == "cifar10":
        return open_cifar10(download_cifar10(data_dir), split)
    path = Path(source)
    with damage_named(path):
        if not os.path.exists(source):
            raise SourceError(
                f"there is no {source!r}: give cifar10, sample, auto, or the path of a folder, "
                "zip or tar"
            )
        if path.is_dir():
            if is_cifar10_folder(path, split):
                return open_cifar10(path, split)
            return open_folder(path)
        if path.name.lower().endswith(ZIP_SUFFIXES):
            return open_zip(path)
        if path.name.lower().endswith(TAR_SUFFIXES):
            return open_cifar10(path, split) if is_cifar10_archive(path) else open_tar(path)
    raise SourceError(f"{source} is neither a folder nor a zip or tar archive")
