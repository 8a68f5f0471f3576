"""Where images come from: CIFAR-10, files, folders, archives, or the drawn sample.

A source yields its items in the same order and with the same ids every time.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from image_search.errors import SourceError
from worker.sources.archive import TAR_SUFFIXES, ZIP_SUFFIXES, open_tar, open_zip
from worker.sources.bucket import is_bucket, open_bucket
from worker.sources.cifar10 import download_cifar10, find_cifar10, open_cifar10
from worker.sources.files import Choice
from worker.sources.folder import is_image, open_folder, open_image_file
from worker.sources.labels import LABEL_FROM, LabelFrom
from worker.sources.names import printable
from worker.sources.parquet import PARQUET_SUFFIXES, open_parquet
from worker.sources.remote import download_source, is_remote, without_secrets
from worker.sources.sample import open_sample
from worker.sources.skipped import Skipped
from worker.sources.source import SPLITS, Item, Source, Split, at_address, damage_named
from worker.sources.table import CSV_SUFFIXES, JSON_SUFFIXES, LIST_SUFFIXES, open_table
from worker.sources.webdataset import is_webdataset, open_webdataset

__all__ = ["LABEL_FROM", "SPLITS", "Item", "Source", "Split", "open_source"]


def open_source(
    source: str,
    *,
    data_dir: Path,
    split: Split | None = None,
    held_out: bool = False,
    label_from: LabelFrom = "auto",
    s3_endpoint: str = "",
) -> Source:
    """The source that the command line names: `cifar10`, `sample`, a path or an address.

    Without a `split` it is the whole of a folder or archive, and the training images of CIFAR-10
    and the sample; or, for images that are `held_out` from an index, the test split where there is
    one.

    Raises SourceError when it does not exist, is damaged, or holds no images, and DownloadError
    when CIFAR-10 cannot be downloaded.
    """
    choice = Choice(split, held_out, label_from)
    dataset_split = split or ("test" if held_out else "train")
    if source == "sample":
        return open_sample(dataset_split)
    if source == "cifar10":
        return open_cifar10(download_cifar10(data_dir), dataset_split)
    downloads = data_dir / "downloads"
    if is_bucket(source):
        return open_bucket(
            source,
            s3_endpoint,
            downloads,
            choice,
            lambda path: at_address(source, _open_path(path, choice, dataset_split, source)),
        )
    if is_remote(source):
        path = download_source(source, downloads)
        opened = _open_path(path, choice, dataset_split, source)
        return at_address(without_secrets(source), opened)
    if not os.path.exists(source):
        raise SourceError(
            f"there is no {source!r}: name cifar10, sample or auto, the path of a folder, zip or "
            "tar, or an address that starts with s3://, gs:// or https://"
        )
    return _open_path(Path(source), choice, dataset_split)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """It would look through all names that there are again and again, for a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _open_path(path: Path, choice: Choice, dataset_split: Split, address: str = "") -> Source:
    """A file or folder; `address` is where it was downloaded from."""
    with damage_named(path):
        if path.is_dir():
            if (cifar10 := find_cifar10(path)) is not None:
                return open_cifar10(cifar10, dataset_split)
            with _collector_paused():
                return open_folder(path, choice)
        if path.name.lower().endswith(ZIP_SUFFIXES):
            return open_zip(path, choice)
        if path.name.lower().endswith(TAR_SUFFIXES):
            if find_cifar10(path) is not None:
                return open_cifar10(path, dataset_split)
            if is_webdataset(path):
                return open_webdataset(path, (), Skipped(), choice)
            return open_tar(path, choice)
        if path.name.lower().endswith(CSV_SUFFIXES + JSON_SUFFIXES + LIST_SUFFIXES):
            return open_table(path, choice, address)
        if path.name.lower().endswith(PARQUET_SUFFIXES):
            return open_parquet(path, (), Skipped(), choice)
        if path.is_file() and is_image(path):
            return open_image_file(path, choice)
    raise SourceError(
        f"{printable(address or str(path))} is not a folder, archive, table or image: "
        "docs/reference/sources.md lists what can be ingested"
    )
