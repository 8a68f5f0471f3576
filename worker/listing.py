"""What is in an index, by the source that it came from."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from image_search.index import VectorIndex
from worker.origin import prefix_of_name

# Data sets have ids without a slash: cifar10-train-00042.
_SEPARATORS = "/-"


@dataclass(frozen=True)
class Listed:
    """A source and how many images the index has of it; without a name, all other images.

    `ingested_at` is when its last ingest ran to its end; None where that is not known.
    """

    name: str | None
    place: str
    images: int
    ingested_at: datetime | None


def list_sources(index: VectorIndex) -> list[Listed]:
    """The sources by name, and last the images that came otherwise. Raises StoreError."""
    sources = {name: one for name, one in index.load_sources().items() if not one.shard}
    names = {known.prefix or prefix_of_name(name): name for name, known in sources.items()}
    counts: Counter[str | None] = Counter()
    for id_ in index.ids():
        heads = (head for end in _SEPARATORS if (head := _head(id_, end)) in names)
        counts[names.get(next(heads, ""))] += 1
    found = [
        Listed(name, known.place, counts[name], known.ingested_at)
        for name, known in sorted(sources.items())
    ]
    return found + ([Listed(None, "", counts[None], None)] if counts[None] else [])


def _head(id_: str, end: str) -> str:
    return id_[: id_.find(end) + 1]


def as_json(sources: Sequence[Listed]) -> str:
    """A list of objects; times are ISO 8601."""
    objects = [
        {**asdict(one), "ingested_at": one.ingested_at.isoformat() if one.ingested_at else None}
        for one in sources
    ]
    return json.dumps(objects, ensure_ascii=False, indent=2)


def as_text(sources: Sequence[Listed]) -> str:
    """A table with a line for each source."""
    rows = [("SOURCE", "IMAGES", "LAST INGEST", "PLACE")]
    for one in sources:
        time = one.ingested_at.strftime("%Y-%m-%d %H:%M UTC") if one.ingested_at else "-"
        rows.append((one.name or "(others)", f"{one.images:,}", time, one.place or "-"))
    names, counts, times = (max(len(row[n]) for row in rows) for n in range(3))
    return "\n".join(
        f"{name:<{names}}  {count:>{counts}}  {time:<{times}}  {place}"
        for name, count, time, place in rows
    )
