"""Which source the word `auto` stands for."""

import logging

from image_search.errors import DownloadError, SourceError
from image_search.index import VectorIndex
from image_search.settings import Settings
from worker.sources import Source, Split, open_source

_log = logging.getLogger(__name__)


def source_to_ingest(
    index: VectorIndex | None, split: Split | None, settings: Settings
) -> Source | None:
    """What the index holds already, or CIFAR-10, or the sample where that cannot be downloaded.

    None where the index holds something else.
    """
    held = _dataset_in(index) if index is not None else None
    if held is None and index is not None and index.count():
        return None
    if held == "sample":
        return open_source("sample", split=split, data_dir=settings.data_dir)
    try:
        return open_source("cifar10", split=split, data_dir=settings.data_dir)
    except DownloadError as exc:
        _log.warning("ingesting the drawn sample, as CIFAR-10 cannot be had: %s", exc)
        return open_source("sample", split=split, data_dir=settings.data_dir)


def source_to_search_for(index: VectorIndex, split: Split | None, settings: Settings) -> Source:
    """A split of what the index holds; raises SourceError where that is no known dataset."""
    held = _dataset_in(index)
    if held is None:
        raise SourceError(
            "the index holds neither CIFAR-10 nor the sample: name the images to search for, "
            "python -m worker evaluate SOURCE"
        )
    return open_source(held, split=split, held_out=True, data_dir=settings.data_dir)


def _dataset_in(index: VectorIndex) -> str | None:
    for name in ("cifar10", "sample"):
        if index.list_ids(prefix=f"{name}-", limit=1).ids:
            return name
    return None
