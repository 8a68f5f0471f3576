"""Which source the word `auto` stands for, and that the drawn sample stays by itself."""

import logging
import re
from typing import Final

from image_search.errors import DownloadError, SettingsError, SourceError
from image_search.index import VectorIndex
from image_search.program import or_make, program
from image_search.settings import Settings
from worker.sources import Source, Split, open_source
from worker.sources.sample import KINDS

_log = logging.getLogger(__name__)

_SAMPLES: Final = ("sample", "sample (test)")
_ID_OF_SAMPLE: Final = re.compile(rf"sample-({'|'.join(KINDS)})-\d{{3}}")
_MOST_IDS: Final = 10_000


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
        return open_source("sample", split=split, data_dir=settings.local_dir)
    try:
        return open_source("cifar10", split=split, data_dir=settings.local_dir)
    except DownloadError as exc:
        _log.warning("CIFAR-10 is not available, so the drawn sample is ingested: %s", exc.in_full)
        return open_source("sample", split=split, data_dir=settings.local_dir)


def source_to_search_for(index: VectorIndex, split: Split | None, settings: Settings) -> Source:
    """A split of what the index holds; raises SourceError where that is no known dataset."""
    held = _dataset_in(index)
    if held is None:
        raise SourceError(
            "the index has neither CIFAR-10 nor the sample: name the images to search for, "
            f"{program('worker')} evaluate SOURCE"
        )
    return open_source(held, split=split, held_out=True, data_dir=settings.local_dir)


def refuse_mixture(index: VectorIndex, source: Source, settings: Settings) -> None:
    """Raise SettingsError where the drawn sample would get among other images.

    An index that has both already goes on.
    """
    of_sample = len(_ids_of_sample(index))
    others = index.count() - of_sample
    is_sample = source.name in _SAMPLES
    if of_sample and not others and not is_sample:
        raise SettingsError(
            f"the index {settings.index} holds the drawn sample, whose pictures would come up "
            "among your images. Give them an index of their own: add --index photos here, and set "
            "IMAGE_SEARCH_INDEX=photos for the service"
            + or_make(". With make: make run SOURCE=path/to/folder IMAGE_SEARCH_INDEX=photos")
        )
    if others and not of_sample and is_sample:
        raise SettingsError(
            f"the index {settings.index} holds other images, and the pictures of the drawn sample "
            "would come up among them. Give the sample an index of its own: add --index sample"
        )


def _dataset_in(index: VectorIndex) -> str | None:
    if index.list_ids(prefix="cifar10-", limit=1).ids:
        return "cifar10"
    return "sample" if _ids_of_sample(index) else None


def _ids_of_sample(index: VectorIndex) -> list[str]:
    """Its images in the index; a folder called sample-something has others."""
    ids = index.list_ids(prefix="sample-", limit=_MOST_IDS).ids
    return [id_ for id_ in ids if _ID_OF_SAMPLE.fullmatch(id_)]
