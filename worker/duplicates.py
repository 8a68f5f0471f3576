"""Near-duplicates of a whole index: groups of images that are nearly the same picture.

Each image is a query to the store for its nearest images, and each pair at or above the threshold
joins two groups. So nothing is compared with everything, and what is held in memory is ids.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

import numpy as np

from image_search.index import Record, VectorIndex
from image_search.moments import item_of
from image_search.progress import Progress
from image_search.values import Embeddings, Metric
from worker.sources.names import printable, readable

_log = logging.getLogger(__name__)

T = TypeVar("T")

# An id and its label.
_Image = tuple[str, str | None]

_RECORDS_AT_ONCE: Final = 256
# How many of its nearest images an image is compared with; more only where all of them are copies.
_NEAREST: Final = (10, 100, 1_000)
# Each match comes with its thumbnail, which bounds how many are held.
_MATCHES_AT_ONCE: Final = 3_000
# Of the lengths of embeddings, longest to shortest: rounding in float32 gives less.
_SAME_LENGTH: Final = 1.01

# More of one group are neither printed nor on the page.
MOST_SHOWN: Final = 50


@dataclass(frozen=True)
class Duplicate:
    """An image of a group; `score` is its cosine with the image of the group nearest to it."""

    id: str
    label: str | None
    score: float


@dataclass(frozen=True)
class Duplicates:
    """The groups among `images` images: the largest first, and equal ones by their first id.

    A group has two images or more, in the order of their ids. A video is one of them, with the
    frame that is most alike; its own frames are not compared. `crowded` images have so many
    duplicates that not all pairs were compared.
    """

    groups: list[tuple[Duplicate, ...]]
    images: int
    threshold: float
    crowded: int

    @property
    def grouped(self) -> int:
        """How many images are in groups."""
        return sum(map(len, self.groups))


def find_duplicates(index: VectorIndex, threshold: float) -> Duplicates:
    """Join the images whose embeddings have a cosine of at least `threshold`, above 0, at most 1.

    Raises StoreError.
    """
    ids = list(index.ids())
    cosines = _Cosines(index, ids)
    groups = _Groups()
    crowded = 0
    first_with: dict[bytes, _Image] = {}
    with Progress("comparing", len(ids), "images") as progress:
        for batch in _batches(ids, _RECORDS_AT_ONCE):
            queries = []
            for record in index.fetch(batch, thumbnails=False).values():
                # Thousands of copies of one file would each ask for all the others.
                image = record.id, record.label
                first = first_with.setdefault(_digest(record.embedding), image)
                if first == image:
                    queries.append(record)
                elif item_of(first[0]) != item_of(record.id):
                    groups.join(first, image, 1.0)
            crowded += _join_near(index, queries, threshold, cosines, groups)
            progress.update(len(batch))
    found = sorted(groups.listed(), key=lambda group: (-len(group), group[0].id))
    return Duplicates(found, len(set(map(item_of, ids))), threshold, crowded)


def _join_near(
    index: VectorIndex,
    queries: Sequence[Record],
    threshold: float,
    cosines: "_Cosines",
    groups: "_Groups",
) -> int:
    """Join the queries with what is near them; returns how many have more copies than looked at."""
    for nearest in _NEAREST:
        full = []
        for batch in _batches(queries, max(1, _MATCHES_AT_ONCE // nearest)):
            embeddings = np.stack([record.embedding for record in batch])
            for record, matches in zip(
                batch,
                index.query_many(embeddings, nearest + 1, thumbnails=False),
                strict=True,
            ):
                copies = 0
                for match in matches:
                    cosine = cosines.of(record.id, match.id, match.score)
                    if cosine >= threshold:
                        copies += 1
                        if item_of(match.id) != item_of(record.id):
                            groups.join((record.id, record.label), (match.id, match.label), cosine)
                if copies > nearest:
                    full.append(record)
        queries = full
    return len(queries)


class _Cosines:
    """Cosines of pairs of images, made of the scores of the index's metric."""

    def __init__(self, index: VectorIndex, ids: Sequence[str]) -> None:
        self._metric: Metric = index.manifest.metric
        self._lengths: dict[str, float] = {}
        if self._metric == "cosine":
            return
        with Progress("measuring", len(ids), "images") as progress:
            for batch in _batches(ids, _RECORDS_AT_ONCE):
                for id_, record in index.fetch(batch, thumbnails=False).items():
                    self._lengths[id_] = float(np.linalg.norm(record.embedding.astype(np.float64)))
                progress.update(len(batch))
        lengths = self._lengths.values()
        if lengths and max(lengths) > _SAME_LENGTH * min(lengths) and self._metric == "dotproduct":
            _log.warning(
                "some near-duplicates may be missing: this index compares by dot product, where "
                "long embeddings come first. An index with the metric cosine finds all of them"
            )

    def of(self, one: str, other: str, score: float) -> float:
        """Below all thresholds for an image that has come since the lengths were measured."""
        if self._metric == "cosine":
            return score
        lengths = self._lengths.get(one), self._lengths.get(other)
        if lengths[0] is None or lengths[1] is None:
            return -2.0
        product = lengths[0] * lengths[1]
        if self._metric == "dotproduct":
            return score / product
        return (lengths[0] ** 2 + lengths[1] ** 2 - score) / (2 * product)


class _Groups:
    """Disjoint sets of images and videos, https://doi.org/10.1145/321879.321884.

    Each has its best score; a video has the frame with that.
    """

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}
        self._best: dict[str, Duplicate] = {}

    def join(self, one: _Image, other: _Image, score: float) -> None:
        """Put the groups of two images together."""
        for id_, label in (one, other):
            best = self._best.get(item_of(id_))
            if best is None or (-score, id_) < (-best.score, best.id):
                self._best[item_of(id_)] = Duplicate(id_, label, score)
        self._parents[self._root(item_of(other[0]))] = self._root(item_of(one[0]))

    def listed(self) -> Iterator[tuple[Duplicate, ...]]:
        """All groups, in any order."""
        members: dict[str, list[Duplicate]] = {}
        for item in sorted(self._best):
            members.setdefault(self._root(item), []).append(self._best[item])
        for group in members.values():
            yield tuple(group)

    def _root(self, item: str) -> str:
        root = item
        while (parent := self._parents.setdefault(root, root)) != root:
            root = parent
        while item != root:
            item, self._parents[item] = self._parents[item], root
        return root


def _digest(embedding: Embeddings) -> bytes:
    return hashlib.blake2b(embedding.tobytes(), digest_size=16).digest()


def _batches(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


# --- what is printed ------------------------------------------------------------------------------


def json_lines(found: Duplicates, most: int | None) -> Iterator[str]:
    """A JSON object for each group, at most so many: its number from 1, and its images."""
    for number, group in enumerate(islice(found.groups, most), start=1):
        images: list[Mapping[str, str | float | None]] = [
            {"id": image.id, "label": image.label, "score": round(image.score, 4)}
            for image in group
        ]
        yield json.dumps({"group": number, "images": images}, ensure_ascii=False)


def text_lines(found: Duplicates, most: int | None) -> Iterator[str]:
    """The groups for a terminal, at most so many, and of each at most 50 images."""
    for number, group in enumerate(islice(found.groups, most), start=1):
        yield f"group {number}: {len(group):,} images"
        for image in group[:MOST_SHOWN]:
            label = "" if image.label is None else f"  {printable(image.label)}"
            yield f"  {image.score:.3f}  {readable(image.id)}{label}"
        if len(group) > MOST_SHOWN:
            yield f"  … and {len(group) - MOST_SHOWN:,} more; --json lists all"


def summary(found: Duplicates, most: int | None) -> Iterator[str]:
    """What was found, and what of it is not shown."""
    threshold = f"with a cosine of {found.threshold:g} or more"
    if not found.groups:
        yield f"no near-duplicates among {found.images:,} images, {threshold}"
        return
    count = len(found.groups)
    yield (
        f"{count:,} {'group' if count == 1 else 'groups'} of near-duplicates, "
        f"{found.grouped:,} of {found.images:,} images, {threshold}"
    )
    if most is not None and count > most:
        yield f"only the {most:,} largest groups are shown: --limit {count} shows all"
    if found.crowded:
        yield (
            f"{found.crowded:,} images have more than {_NEAREST[-1]:,} near-duplicates each; their "
            "groups may be listed in parts. A higher --threshold finds fewer"
        )
