"""How good the search is: held-out images are searched in the index, and what comes is judged.

Search figures (precision, recall, confusion, stability) come from the store's own answers, as users
get them. Average precision and the pairs need the score of every image, and are exact: all
embeddings are fetched from the store once and compared in NumPy.
"""

import io
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import cpu_count
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from image_search import images
from image_search.embedding import Embedder
from image_search.errors import ImageError, IndexNotFoundError, RecordError, SourceError, StoreError
from image_search.index import Match, Record, VectorIndex, check_embedding
from image_search.moments import frame_stem, item_of
from image_search.program import program
from image_search.progress import Progress
from image_search.settings import Settings
from image_search.values import (
    DIGEST_FIELD,
    DIMENSION,
    Embeddings,
    Metric,
    Pixels,
)
from worker import measures
from worker.figures import (
    ConfidenceBin,
    EmbeddingMap,
    Estimate,
    Evaluation,
    Figures,
    Group,
    Pairs,
    Picture,
    Reliability,
    Retrieval,
    ScoreBin,
    Setup,
    Stability,
    Strip,
    rounded,
)
from worker.ingest import digest_of, make_decoder, open_image
from worker.measures import Floats
from worker.sources import Item, Source
from worker.sources.names import readable
from worker.videos import is_frame_of, nearest_items, with_stills

T = TypeVar("T")

CUTOFFS: Final = (1, 5, 10, 100)
NEIGHBOURS: Final = 10
NO_LABEL: Final = "(no label)"

_QUERIES_AT_ONCE: Final = 32
_PAGE: Final = 10_000
_FETCHED_AT_ONCE: Final = 1000

# So many queries give an overlap within two points, and cost little beside the others.
_CHANGED_QUERIES: Final = 500
# Sorting scores into this many bins moves the area under the ROC curve by less than 1e-4.
_PAIR_BINS: Final = 1 << 16
_SHOWN_PAIR_BINS: Final = 80
_SCORE_BINS: Final = 20
_STRIPS: Final = 6
# t-SNE's time grows faster than the count; this many take about ten seconds.
_MAP_IMAGES: Final = 2000
_FEWEST_MAP_IMAGES: Final = 20
_PERPLEXITY: Final = 30.0
# Float32 sums in another order differ by so much of the score.
_TOLERANCE: Final = 1e-6


def _as_jpeg(image: Image.Image) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=50)
    return Image.open(out)


def _crop(image: Image.Image) -> Image.Image:
    width, height = image.size
    box = (0.05 * width, 0.05 * height, 0.95 * width, 0.95 * height)
    return image.resize(image.size, Image.Resampling.BILINEAR, box)


CHANGES: Final[dict[str, Callable[[Image.Image], Image.Image]]] = {
    "mirrored": ImageOps.mirror,
    "cropped to the central 90 %": _crop,
    "JPEG at quality 50": _as_jpeg,
    "20 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
}


def evaluate(
    source: Source,
    index: VectorIndex,
    embedder: Embedder,
    settings: Settings,
    *,
    queries: int,
    seed: int,
    scratch: Path,
) -> Evaluation:
    """Search for `queries` images of the source, drawn at random, or for all if there are fewer.

    What is random follows from `seed`. A query that is in the index itself, under its id, is left
    out of its own matches. In the folder `scratch` all embeddings of the index, 2 KB each, are
    kept meanwhile. Raises SourceError when no image of the source can be read, IndexNotFoundError
    when the index is empty, and StoreError when `scratch` is full.
    """
    if not index.count():
        raise IndexNotFoundError(
            f"the index {settings.index!r} has no images yet: ingest images first, "
            f"{program('worker')} ingest SOURCE"
        )
    asked = _read_queries(source, embedder, settings, queries, np.random.default_rng(seed))
    if not asked.ids:
        reason = next(iter(asked.unreadable.values()), "it is empty")
        raise SourceError(f"none of the images of {source.name} can be read: {reason}")
    with TemporaryFile(dir=scratch) as file:
        try:
            gallery = _fetch_gallery(index, file)
        except OSError as exc:
            raise StoreError(
                f"the index's embeddings cannot be kept in {scratch} meanwhile: {exc.strerror}; "
                "make room, or choose another folder with --output"
            ) from exc
        return _Evaluation(asked, gallery, index, settings, seed).run(source.name, embedder)


# --- what is asked, and what there is to find ----------------------------------------------------


@dataclass
class _Queries:
    """`embeddings` is float32 [n, 512]; `changed` float32 [rows, changes, 512], of `changed_rows`.

    `former_ids` are what they may be in the index as, and `digests` the SHA-256 of what the images
    were read from.
    """

    ids: list[str] = field(default_factory=list)
    former_ids: list[str | None] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)
    embeddings: Embeddings = field(default_factory=lambda: np.empty((0, DIMENSION), np.float32))
    changed_rows: list[int] = field(default_factory=list)
    changed: Embeddings = field(default_factory=lambda: np.empty((0, 0, DIMENSION), np.float32))
    unreadable: dict[str, str] = field(default_factory=dict)


def _read_queries(
    source: Source, embedder: Embedder, settings: Settings, count: int, rng: np.random.Generator
) -> _Queries:
    chosen = rng.choice(source.total, min(count, source.total), replace=False).tolist()
    to_change = set(chosen[:_CHANGED_QUERIES])
    stills = with_stills(source.pick(set(chosen)), embedder.model.input_size, settings.max_pixels)
    items = zip(stills, [number in to_change for number in sorted(chosen)], strict=False)
    queries = _Queries()
    embeddings: list[Embeddings] = []
    changed: list[Embeddings] = []

    def prepare(pair: tuple[Item, bool]) -> tuple[list[Pixels], bytes] | ImageError:
        """The pixels of the image, and after those of its changes; and its thumbnail."""
        item, with_changes = pair
        if isinstance(item.content, ImageError):
            return item.content
        try:
            image = open_image(item.content, embedder.model.input_size, decoder)
        except ImageError as exc:
            return exc
        versions = [image, *(change(image) for change in CHANGES.values() if with_changes)]
        return [embedder.pixels(version) for version in versions], images.thumbnail(image)

    with (
        Progress("queries", len(chosen), "images") as progress,
        make_decoder(settings) as decoder,
        ThreadPoolExecutor() as pool,
    ):
        while batch := list(itertools.islice(items, settings.batch_size)):
            prepared = list(pool.map(prepare, batch))
            versions = [pixels for one in prepared if isinstance(one, tuple) for pixels in one[0]]
            embedded = iter(embedder.embed(versions))
            for (item, _), one in zip(batch, prepared, strict=True):
                try:
                    if isinstance(item.content, ImageError):
                        raise item.content
                    if isinstance(one, ImageError):
                        raise one
                    own, *others = [next(embedded) for _ in one[0]]
                    for embedding in (own, *others):
                        check_embedding(embedding)
                except (ImageError, RecordError) as exc:
                    queries.unreadable[item.id] = str(exc)
                    progress.message(f"skipped {readable(item.id)}: {exc}")
                    continue
                if others:
                    queries.changed_rows.append(len(queries.ids))
                    changed.append(np.array(others))
                queries.ids.append(item.id)
                queries.former_ids.append(item.former_id)
                queries.labels.append(item.label)
                queries.digests.append(digest_of(item))
                queries.thumbnails.append(one[1])
                embeddings.append(own)
            progress.update(len(batch))
    if embeddings:
        queries.embeddings = np.array(embeddings)
    if changed:
        queries.changed = np.array(changed)
    return queries


@dataclass(frozen=True)
class _Gallery:
    """All images and videos of the index, ordered by id.

    `ids` are those of images, and of each video that of its first frame; `starts` is where in
    `embeddings` their rows begin, one for an image and one for each frame. Those are float32
    [n, 512], in a file.
    """

    ids: list[str]
    labels: list[str | None]
    starts: NDArray[np.intp]
    embeddings: Embeddings
    metric: Metric

    def similarities(self, queries: Embeddings) -> Embeddings:
        """The metric's scores, where more is more similar; of a video, that of its best frame.

        float32 [q, items] for float32 [q, 512].
        """
        found = self._of_each(queries)
        if len(self.starts) < found.shape[1]:
            found = np.maximum.reduceat(found, self.starts, axis=1)
        return found

    def _of_each(self, queries: Embeddings) -> Embeddings:
        if self.metric == "euclidean":
            products = queries @ self.embeddings.T
            squares = np.square(queries).sum(axis=1, keepdims=True)
            similarities: Embeddings = 2 * products - self._squares - squares
        else:
            similarities = _comparable(queries, self.metric) @ self.embeddings.T
        return similarities

    @cached_property
    def _squares(self) -> Embeddings:
        squares: Embeddings = np.einsum("ij,ij->i", self.embeddings, self.embeddings)
        return squares

    def bound(self, queries: Embeddings) -> tuple[float, float]:
        """Between which numbers all similarities are."""
        if self.metric == "cosine":
            return -1.0, 1.0
        longest = float(np.linalg.norm(queries, axis=1).max())
        longest_here = float(self._squares.max()) ** 0.5
        if self.metric == "euclidean":
            return -((longest + longest_here) ** 2), 0.0
        return -longest * longest_here, longest * longest_here


def _fetch_gallery(index: VectorIndex, file: IO[bytes]) -> _Gallery:
    all_ids: list[str] = []
    page = index.list_ids(limit=_PAGE)
    all_ids += page.ids
    while page.cursor:
        page = index.list_ids(limit=_PAGE, cursor=page.cursor)
        all_ids += page.ids
    all_ids.sort()
    metric = index.manifest.metric
    ids: list[str] = []
    labels: list[str | None] = []
    starts: list[int] = []
    rows = 0
    with Progress("index", len(all_ids), "images") as progress:
        for start in range(0, len(all_ids), _FETCHED_AT_ONCE):
            batch = all_ids[start : start + _FETCHED_AT_ONCE]
            records = index.fetch(batch, thumbnails=False)
            for id_ in sorted(records):
                file.write(_comparable(records[id_].embedding, metric).tobytes())
                # In order, so that the frames of a video follow each other.
                if not ids or item_of(ids[-1]) != item_of(id_):
                    ids.append(id_)
                    labels.append(records[id_].label)
                    starts.append(rows)
                rows += 1
            progress.update(len(records))
    file.flush()
    embeddings = np.memmap(file, np.float32, "r", shape=(rows, DIMENSION))
    return _Gallery(ids, labels, np.array(starts, np.intp), embeddings, metric)


def _comparable(embeddings: Embeddings, metric: Metric) -> Embeddings:
    if metric != "cosine":
        return embeddings
    lengths: Embeddings = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return embeddings / lengths


# --- asking and judging ---------------------------------------------------------------------------


class _Evaluation:
    """Rows of all arrays are queries. Labels are numbers: those of the index, then -1 for none."""

    def __init__(
        self,
        queries: _Queries,
        gallery: _Gallery,
        index: VectorIndex,
        settings: Settings,
        seed: int,
    ) -> None:
        self._queries = queries
        self._gallery = gallery
        self._index = index
        self._settings = settings
        self._seed = seed
        self._sign = -1 if gallery.metric == "euclidean" else 1
        self._row_of = {item_of(id_): row for row, id_ in enumerate(gallery.ids)}
        self._own = self._find_own()
        self._names = sorted({label for label in gallery.labels if label is not None})
        self._code_of: dict[str | None, int] = {name: code for code, name in enumerate(self._names)}
        self._codes = np.array([self._code_of.get(label, -1) for label in gallery.labels])
        # One that nothing in the index has is like none, but equals no other.
        self._query_codes = np.array([self._code_of.get(label, -2) for label in queries.labels])
        count = len(queries.ids)
        self._nearest: list[list[Match]] = []
        self._relevant = np.zeros((count, max(CUTOFFS)), np.bool_)
        self._totals = np.zeros(count, np.int64)
        self._average_precision = np.zeros(count)
        self._store_recall = np.zeros(count)
        self._same_bins = np.zeros(_PAIR_BINS, np.int64)
        self._all_bins = np.zeros(_PAIR_BINS, np.int64)

    def run(self, source_name: str, embedder: Embedder) -> Evaluation:
        queries = self._queries
        with (
            Progress("searches", len(queries.ids), "images") as progress,
            ThreadPoolExecutor(cpu_count()) as pool,
        ):
            for start in range(0, len(queries.ids), _QUERIES_AT_ONCE):
                rows = range(len(queries.ids))[start : start + _QUERIES_AT_ONCE]
                self._search(rows)
                self._compare_with_all(rows, pool)
                progress.update(len(rows))
        labelled = np.flatnonzero(self._totals)
        protocol = Setup(
            source=source_name,
            queries=len(queries.ids),
            images=len(self._gallery.ids),
            store=self._settings.store,
            index=self._settings.index,
            namespace=self._settings.namespace,
            metric=self._gallery.metric,
            model=embedder.model,
            input_size_reason=self._index.manifest.input_size_reason,
            seed=self._seed,
            left_out=len(self._own),
            unreadable=len(queries.unreadable),
            without_relevant=len(queries.ids) - len(labelled),
        )
        recall = Estimate.of_columns({"recall": self._store_recall}, self._rng())["recall"]
        figures = Figures(
            protocol=protocol,
            retrieval=self._retrieval(labelled) if len(labelled) else None,
            without_labels=None if len(labelled) else self._why_no_labels(),
            store_recall=recall,
            stability=self._stability(),
        )
        return Evaluation(figures, queries.unreadable, self._strips(labelled), self._map())

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self._seed)

    def _find_own(self) -> dict[int, str]:
        """The queries that are in the index: same id or former id, and made of the same bytes.

        Of a video, the id is what those of its frames begin with.
        """
        queries = self._queries
        candidates = {
            self._gallery.ids[self._row_of[item]]: row
            for row, ids in enumerate(zip(queries.former_ids, queries.ids, strict=True))
            for item in map(frame_stem, filter(None, ids))
            if item in self._row_of
        }
        own = {}
        for ids in _slices(list(candidates), _FETCHED_AT_ONCE):
            for id_, record in self._index.fetch(ids, thumbnails=False).items():
                found = queries.digests[candidates[id_]]
                if record.metadata.get(DIGEST_FIELD) == found or is_frame_of(record, found):
                    own[candidates[id_]] = item_of(id_)
        return own

    def _ask(self, embeddings: Embeddings, top_k: int, rows: Sequence[int]) -> list[list[Match]]:
        """What the store finds for the embeddings of these queries, without the queries."""
        return nearest_items(
            lambda asked, count: self._index.query_many(asked, count, thumbnails=False),
            embeddings,
            [self._own.get(row) for row in rows],
            top_k,
        )

    def _search(self, rows: range) -> None:
        embeddings = self._queries.embeddings[rows]
        # Asked for by themselves, as users do: an approximate search for more is a better one.
        nearest = self._ask(embeddings, NEIGHBOURS, rows)
        further = self._ask(embeddings, max(CUTOFFS), rows)
        for row, first, found in zip(rows, nearest, further, strict=True):
            matches = first + found[len(first) :]
            codes = [self._code_of.get(match.label, -1) for match in matches]
            self._relevant[row, : len(codes)] = np.array(codes) == self._query_codes[row]
            self._nearest.append([replace(match, metadata={}) for match in first])

    def _compare_with_all(self, rows: range, pool: ThreadPoolExecutor) -> None:
        """Everything that needs the exact score of every image."""
        low, high = self._gallery.bound(self._queries.embeddings)
        similarities = self._gallery.similarities(self._queries.embeddings[rows])
        relevant = self._query_codes[rows][:, np.newaxis] == self._codes
        for number, row in enumerate(rows):
            if row in self._own:
                own = self._row_of[self._own[row]]
                similarities[number, own] = -np.inf
                relevant[number, own] = False
        totals = relevant.sum(axis=1)
        self._totals[rows] = totals
        self._store_recall[rows] = list(pool.map(self._recall_of_store, rows, similarities))
        labelled = np.flatnonzero(totals)
        if not len(labelled):
            return
        similarities, relevant = similarities[labelled], relevant[labelled]
        self._average_precision[np.array(rows)[labelled]] = list(
            pool.map(measures.average_precision, similarities, relevant)
        )
        bins = ((similarities - low) * (_PAIR_BINS / (high - low))).clip(0, _PAIR_BINS - 1)
        bins = bins.astype(np.int32)
        self._all_bins += np.bincount(bins[similarities > -np.inf], minlength=_PAIR_BINS)
        self._same_bins += np.bincount(bins[relevant], minlength=_PAIR_BINS)

    def _recall_of_store(self, row: int, similarities: Embeddings) -> float:
        """Images as near as the last of the exact ten count, whichever of them was found."""
        wanted = min(NEIGHBOURS, int(np.isfinite(similarities).sum()))
        if not wanted:
            return 1.0
        last = np.partition(similarities, -wanted)[-wanted]
        items = [item_of(match.id) for match in self._nearest[row]]
        rows = [self._row_of[item] for item in items if item in self._row_of]
        near_enough = similarities[rows] >= last - _TOLERANCE * max(1.0, abs(last))
        return min(1.0, float(near_enough.sum()) / wanted)

    # --- what labels tell ---

    def _why_no_labels(self) -> str:
        if not self._names:
            return "no image in the index has a label"
        if not any(self._queries.labels):
            return "none of the query images has a label"
        return "none of the queries' labels is one that other images in the index have"

    def _retrieval(self, labelled: NDArray[np.intp]) -> Retrieval:
        relevant, totals = self._relevant[labelled], self._totals[labelled]
        others = len(self._gallery.ids) - bool(self._own)
        cutoffs = [k for k in CUTOFFS if k <= others]
        columns = {f"precision@{k}": measures.precision_at(relevant, k) for k in cutoffs}
        columns["mAP"] = self._average_precision[labelled]
        columns |= {f"recall@{k}": measures.recall_at(relevant, k, totals) for k in cutoffs}
        labels = self._query_codes[labelled]
        return Retrieval(
            chance=rounded((totals / others).mean()),
            overall=self._group(columns, np.ones(len(labelled), np.bool_)),
            by_label={
                self._names[code]: self._group(columns, labels == code)
                for code in np.unique(labels)
            },
            confusion=self._confusion(labelled),
            pairs=self._pairs(),
            precision_by_score=self._precision_by_score(labelled),
            reliability=self._reliability(labelled),
        )

    def _group(self, columns: dict[str, Floats], rows: NDArray[np.bool_]) -> Group:
        values = {name: column[rows] for name, column in columns.items()}
        return Group(queries=int(rows.sum()), estimates=Estimate.of_columns(values, self._rng()))

    def _confusion(self, labelled: NDArray[np.intp]) -> dict[str, dict[str, int]]:
        counts: dict[str, Counter[str]] = {}
        for row in labelled:
            label = self._names[self._query_codes[row]]
            found = counts.setdefault(label, Counter())
            found.update(match.label or NO_LABEL for match in self._nearest[row])
        return {label: dict(sorted(counts[label].items())) for label in sorted(counts)}

    def _pairs(self) -> Pairs:
        low, high = self._gallery.bound(self._queries.embeddings)
        different_bins = self._all_bins - self._same_bins
        used = np.flatnonzero(self._all_bins)
        first, last = int(used[0]), int(used[-1]) + 1
        step = -(-(last - first) // _SHOWN_PAIR_BINS)
        starts = np.arange(first, last, step)
        edges = self._sign * (low + np.append(starts, last) * (high - low) / _PAIR_BINS)
        centres = self._sign * (low + (np.arange(_PAIR_BINS) + 0.5) * (high - low) / _PAIR_BINS)
        same, different = int(self._same_bins.sum()), int(different_bins.sum())

        def shares(bins: NDArray[np.int64], total: int) -> list[float]:
            counts = np.add.reduceat(bins[:last], starts)
            return [rounded(share) for share in counts / max(1, total)]

        return Pairs(
            edges=[rounded(edge) for edge in edges],
            same_shares=shares(self._same_bins, same),
            different_shares=shares(different_bins, different),
            same=same,
            different=different,
            same_mean=rounded(np.average(centres, weights=self._same_bins)),
            different_mean=rounded(np.average(centres, weights=different_bins))
            if different
            else None,
            roc_auc=rounded(measures.roc_auc(self._same_bins, different_bins))
            if different
            else None,
        )

    def _scores(self, labelled: NDArray[np.intp]) -> tuple[Floats, NDArray[np.bool_]]:
        """Of all of the ten nearest: the scores, and which have the query's label."""
        scores = [match.score for row in labelled for match in self._nearest[row]]
        correct = [self._relevant[row, : len(self._nearest[row])] for row in labelled]
        return np.array(scores), np.concatenate(correct)

    def _precision_by_score(self, labelled: NDArray[np.intp]) -> list[ScoreBin]:
        """Twenty bins that hold as many matches each, but equal scores are not parted."""
        scores, correct = self._scores(labelled)
        inner = np.unique(np.quantile(scores, np.arange(1, _SCORE_BINS) / _SCORE_BINS))
        bins = np.searchsorted(inner, scores, side="right")
        return [
            ScoreBin(
                score=rounded(scores[bins == number].mean()),
                precision=rounded(correct[bins == number].mean()),
                matches=int((bins == number).sum()),
            )
            for number in np.unique(bins)
        ]

    def _reliability(self, labelled: NDArray[np.intp]) -> Reliability | None:
        calibration = self._index.calibration
        if calibration is None:
            return None
        scores, correct = self._scores(labelled)
        confidences = np.array([calibration.confidence(score) for score in scores])
        bins = zip(*measures.reliability(confidences, correct), strict=True)
        return Reliability(
            expected_calibration_error=rounded(
                measures.expected_calibration_error(confidences, correct)
            ),
            bins=[
                ConfidenceBin(
                    confidence=rounded(confidence), precision=rounded(share), matches=int(count)
                )
                for count, confidence, share in bins
            ],
        )

    # --- what needs no labels ---

    def _stability(self) -> dict[str, Stability]:
        rows, changed = self._queries.changed_rows, self._queries.changed
        if not rows:
            return {}
        before = _comparable(self._queries.embeddings[rows], "cosine")
        stability = {}
        with Progress("changed queries", len(rows) * len(CHANGES), "images") as progress:
            for number, name in enumerate(CHANGES):
                overlaps: list[float] = []
                for part in _slices(range(len(rows)), _QUERIES_AT_ONCE):
                    asked = [rows[i] for i in part]
                    found = self._ask(changed[part, number], NEIGHBOURS, asked)
                    for row, matches in zip(asked, found, strict=True):
                        kept = {item_of(match.id) for match in self._nearest[row]}
                        stay = len(kept & {item_of(match.id) for match in matches})
                        overlaps.append(stay / len(kept) if kept else 1.0)
                    progress.update(len(part))
                after = _comparable(changed[:, number], "cosine")
                cosines = np.einsum("ij,ij->i", before, after).astype(np.float64)
                columns = {"overlap": np.array(overlaps), "cosine": cosines}
                stability[name] = Stability(
                    queries=len(rows), **Estimate.of_columns(columns, self._rng())
                )
        return stability

    # --- pictures ---

    def _strips(self, labelled: NDArray[np.intp]) -> dict[str, list[Strip]]:
        count = len(self._queries.ids)
        drawn = self._rng().choice(count, min(count, _STRIPS), replace=False)
        chosen = {"Drawn at random": drawn}
        if len(labelled):
            order = labelled[np.argsort(-self._average_precision[labelled], kind="stable")]
            chosen["Best, by average precision"] = order[:_STRIPS]
            chosen["Worst, by average precision"] = order[::-1][:_STRIPS]
        shown = {
            match.id for rows in chosen.values() for row in rows for match in self._nearest[row]
        }
        records = self._index.fetch(sorted(shown))
        return {
            heading: [self._strip(int(row), records) for row in rows]
            for heading, rows in chosen.items()
        }

    def _strip(self, row: int, records: dict[str, Record]) -> Strip:
        queries = self._queries
        has_quality = self._totals[row] > 0
        return Strip(
            query=Picture(queries.ids[row], queries.labels[row], queries.thumbnails[row]),
            matches=[
                (Picture(match.id, match.label, records[match.id].thumbnail), match.score)
                for match in self._nearest[row]
                if match.id in records
            ],
            precision=float(self._relevant[row, :NEIGHBOURS].mean()) if has_quality else None,
            average_precision=float(self._average_precision[row]) if has_quality else None,
        )

    def _map(self) -> EmbeddingMap | None:
        """t-SNE (van der Maaten and Hinton, JMLR 9, 2008) of images of the index."""
        count = len(self._gallery.ids)
        if count < _FEWEST_MAP_IMAGES:
            return None
        rows = np.sort(self._rng().choice(count, min(count, _MAP_IMAGES), replace=False))
        # Threads add up in another order each time, and the map would turn out another.
        with Progress("map", len(rows), "images") as progress, threadpool_limits(1):
            points = TSNE(
                perplexity=min(_PERPLEXITY, len(rows) / 4), init="random", random_state=self._seed
            ).fit_transform(np.array(self._gallery.embeddings[self._gallery.starts[rows]]))
            progress.update(len(rows))
        return EmbeddingMap(points.astype(np.float64), [self._gallery.labels[row] for row in rows])


def _slices(values: Sequence[T], size: int) -> list[Sequence[T]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
