"""Sources, read whole."""

from pathlib import Path
from typing import Any

import numpy as np

from image_search.index import Record, check_record
from image_search.values import DIMENSION
from worker.sources import Item, Source, open_source


def opened(path: Path, **options: Any) -> Source:
    return open_source(str(path), data_dir=Path("nowhere"), **options)


def items(source: Source) -> dict[str, Item]:
    """The items by id; each would be a valid record, and there are as many as the source says."""
    found = {item.id: item for item in source.items()}
    assert len(found) == source.total
    vector = np.ones(DIMENSION, np.float32)
    for item in found.values():
        check_record(Record(item.id, vector, item.label, item.metadata, b""))
    return found
