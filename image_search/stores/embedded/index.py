"""The index over one LanceDB table."""

import json
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Final, Self, TypeVar

import numpy as np
from lancedb.query import ColumnOrdering

from image_search.calibration import Calibration
from image_search.errors import IndexReplacedError, StoreError, UnsupportedError
from image_search.filters import Filter
from image_search.index import (
    IdPage,
    Listed,
    Listing,
    Match,
    Page,
    Record,
    Sort,
    VectorIndex,
    best_first,
)
from image_search.manifest import Manifest
from image_search.program import program
from image_search.provenance import KnownSource
from image_search.recipe import Recipe
from image_search.sample import ImageSample
from image_search.stores.embedded import order, upkeep
from image_search.stores.embedded import table as tables
from image_search.stores.embedded.errors import put_off_by_conflict, until_no_conflict
from image_search.stores.embedded.files import IndexFiles
from image_search.stores.embedded.locks import Reading
from image_search.stores.embedded.nearest import nearest
from image_search.stores.embedded.removal import remove_former
from image_search.stores.embedded.resident import Resident
from image_search.stores.embedded.scores import scores
from image_search.stores.embedded.sql import (
    WORDS,
    digests_sql,
    filter_sql,
    ids_sql,
    listing_sql,
    literal,
    prefix_sql,
)
from image_search.values import DIGEST_FIELD, Embeddings, Metadata, Metric

_BY_ID: Final = ColumnOrdering(column_name="id")
# Measured on 50,000 CIFAR-10 embeddings: recall@10 and recall@100 of 0.99 and more; and with
# 1,000,000, copies that have noise, recall@10 of 0.98 and more, 0.98 among the images of one class
# of ten, too. By dot product, partitions tell less of what is in them.
_PROBES: Final[dict[Metric, int]] = {"cosine": 40, "euclidean": 40, "dotproduct": 64}
_PROBES_WITH_FILTER: Final = 160
_MAX_TOP_K_OF_PROBES: Final = 100
_ALL: Final = 0
# So many of the nearest by 8-bit codes are compared exactly.
_CANDIDATES_PER_MATCH: Final = 1.5

_log = logging.getLogger(__name__)

T = TypeVar("T")


class EmbeddedIndex(VectorIndex):
    """The index over one LanceDB table, which any number of processes may have open."""

    def __init__(
        self,
        table: Any,
        files: IndexFiles,
        manifest_json: bytes | None,
        manifest: Manifest,
        calibration: Calibration | None,
        reading: Reading | None,
        open_table: Callable[[], Any],
        most_bytes: int,
    ) -> None:
        super().__init__(manifest, calibration)
        self._table = table
        # As it was written: another version may have fewer fields.
        self._check_not_replaced = partial(_check_not_replaced, table, manifest_json, files)
        self._resident = Resident(
            table,
            files,
            manifest_json or b"",
            manifest.metric,
            most_bytes,
            open_table,
            self._check_not_replaced,
        )
        self.files = files
        self._reading = reading
        self._sample_version = files.sample_version()

    @classmethod
    def open(cls, files: IndexFiles, reading: Reading | None, most_bytes: int) -> Self:
        """The index over the table of these files, which `reading` keeps as long as it is open.

        Its copy in memory, from which searches are answered, has `most_bytes` at most.
        Raises IndexMismatchError if its manifest is unreadable, and what LanceDB raises.
        """
        files.prepare()
        return cls._of_table(tables.connect(files), files, reading, most_bytes)

    @classmethod
    def create(
        cls, files: IndexFiles, manifest: Manifest, recipe: Recipe | None, most_bytes: int
    ) -> Self:
        """The index over a new table, or the one that another process created meanwhile.

        `recipe` is the one that the manifest names. Raises as `open`.
        """
        if recipe is not None:
            # Before the table, so that no manifest is seen without its recipe.
            files.write_recipe(recipe)
        connection = tables.connect(files)
        try:
            connection.create_table(files.name, schema=tables.schema(manifest))
        except ValueError as exc:
            if "already exists" not in str(exc):
                raise
        else:
            # What an index of this name that was removed has left.
            files.remove_facts()
            if files == files.in_use():
                files.remove_shared_facts()
        files.sync()
        return cls._of_table(connection, files, files.reading(), most_bytes)

    @classmethod
    def _of_table(
        cls, connection: Any, files: IndexFiles, reading: Reading | None, most_bytes: int
    ) -> Self:
        def open_table() -> Any:
            return connection.open_table(files.name)

        table = open_table()
        manifest_json = tables.manifest_json(table)
        manifest = tables.parse_manifest(manifest_json, files)
        return cls(
            table,
            files,
            manifest_json,
            manifest,
            files.read_calibration(),
            reading,
            open_table,
            most_bytes,
        )

    def _save_calibration(self, calibration: Calibration) -> None:
        with self._errors():
            self.files.write_calibration(calibration)

    def load_sample(self) -> ImageSample:
        with self._errors():
            return self.files.read_sample()

    def save_sample(self, sample: ImageSample) -> None:
        with self._errors():
            self.files.write_sample(sample)

    def update_sample(self, change: Callable[[ImageSample], ImageSample]) -> None:
        with self._errors():
            self.files.update_sample(change)

    @property
    def sample_version(self) -> str:
        return self._sample_version

    def load_sources(self) -> dict[str, KnownSource]:
        with self._errors():
            return self.files.read_sources()

    def save_source(self, name: str, source: KnownSource) -> None:
        with self._errors():
            self.files.add_source(name, source)

    def load_deletions(self) -> dict[str, str]:
        with self._errors():
            return self.files.read_deletions()

    def save_deletions(self, deletions: Mapping[str, str]) -> None:
        with self._errors():
            self.files.add_deletions(deletions)

    def forget_deletions(self, ids: Collection[str]) -> None:
        with self._errors():
            self.files.forget_deletions(ids)

    def _load_recipe(self, fingerprint: str) -> Recipe:
        with self._errors():
            return self.files.read_recipe(fingerprint)

    def _upsert(self, records: list[Record]) -> None:
        rows = tables.rows_of(records)
        with self._writing():
            if not self._has_words():
                rows = rows.drop_columns(WORDS)
            merge = (
                self._table.merge_insert("id")
                .when_matched_update_all()
                .when_not_matched_insert_all()
            )
            until_no_conflict(lambda: merge.execute(rows))

    def _query(
        self, embeddings: Embeddings, top_k: int, filter_: Filter | None, *, thumbnails: bool
    ) -> list[list[Match]]:
        with self._errors():
            view = self._resident.view()
            if view is not None:
                try:
                    return nearest(
                        view,
                        self._manifest.metric,
                        embeddings,
                        top_k,
                        filter_,
                        thumbnails=thumbnails,
                    )
                except (OSError, RuntimeError, ValueError) as exc:
                    # Files of its version may be removed before a filter is looked up.
                    if "not found" not in str(exc).lower():
                        raise
        columns = tables.columns(thumbnails=thumbnails)
        return self._read(lambda: self._find(embeddings, top_k, filter_, columns))

    @property
    def is_in_memory(self) -> bool:
        return not self.files.is_remote and self._resident.has_newest

    def _find(
        self, embeddings: Embeddings, top_k: int, filter_: Filter | None, columns: list[str]
    ) -> list[list[Match]]:
        matches: list[list[Match]] = [[] for _ in embeddings]
        probes = _PROBES_WITH_FILTER if filter_ else _PROBES[self._manifest.metric]
        if top_k <= _MAX_TOP_K_OF_PROBES:
            matches = self._search(embeddings, top_k, filter_, columns, (probes, probes))
        # Too few where the filter or deletions left little near the query: go on probing.
        short = [number for number, found in enumerate(matches) if len(found) < top_k]
        if short:
            again = self._search(embeddings[short], top_k, filter_, columns, (probes, _ALL))
            for number, found in zip(short, again, strict=True):
                matches[number] = found
        self._check_not_replaced()
        return matches

    def _search(
        self,
        embeddings: Embeddings,
        top_k: int,
        filter_: Filter | None,
        columns: list[str],
        probes: tuple[int, int],
    ) -> list[list[Match]]:
        """Scan the first number of partitions, and until there are enough the second number."""
        # Where the two differ, LanceDB mostly scans all partitions at once. Where they do not, and
        # comparing exactly is left to us, it scans each partition once for all queries.
        metric = self._manifest.metric
        search = (
            self._table.search(
                list(embeddings) if len(embeddings) > 1 else embeddings[0],
                vector_column_name="embedding",
            )
            .distance_type(tables.DISTANCE[metric])
            .minimum_nprobes(probes[0])
            .maximum_nprobes(probes[1])
            .select([*columns, "_distance"])
            .limit(math.ceil(_CANDIDATES_PER_MATCH * top_k))
        )
        if filter_ is not None:
            search = search.where(filter_sql(filter_))
        rows = search.to_arrow()
        # LanceDB numbers the queries only where there are several.
        several = "query_index" in rows.column_names
        numbers = rows["query_index"].to_numpy() if several else np.zeros(len(rows), np.int32)
        computed = scores(metric, embeddings[numbers], tables.embeddings_of(rows))
        described = (rows[name].to_pylist() for name in ("id", "label", "metadata"))
        matches: list[list[Match]] = [[] for _ in embeddings]
        for number, score, id_, label, metadata, thumbnail in zip(
            numbers.tolist(), computed.tolist(), *described, tables.thumbnails_of(rows), strict=True
        ):
            match = Match(id_, score, label, json.loads(metadata), thumbnail)
            matches[number].append(match)
        return [best_first(found, metric)[:top_k] for found in matches]

    def _fetch(self, ids: Sequence[str], *, thumbnails: bool) -> dict[str, Record]:
        columns = tables.columns(thumbnails=thumbnails)
        rows = self._rows(columns, ids_sql(ids), limit=len(ids))
        return {record.id: record for record in tables.records_of(rows)}

    def _find_digests(self, digests: Collection[str]) -> dict[str, list[str]]:
        rows = self._rows(["id", "metadata"], digests_sql(digests))
        found: dict[str, list[str]] = {}
        for id_, metadata in zip(rows["id"].to_pylist(), rows["metadata"].to_pylist(), strict=True):
            found.setdefault(json.loads(metadata)[DIGEST_FIELD], []).append(id_)
        return found

    def _delete(self, ids: Sequence[str]) -> None:
        with self._writing():
            until_no_conflict(lambda: self._table.delete(ids_sql(ids)))

    def list_ids(self, *, prefix: str = "", limit: int = 100, cursor: str = "") -> IdPage:
        where = f"id > {literal(cursor)} AND {prefix_sql(prefix)}"
        ids = self._rows(["id"], where, limit=limit + 1, by=_BY_ID)["id"].to_pylist()
        return IdPage(ids[:limit], ids[limit - 1] if len(ids) > limit else "")

    def list_images(self, listing: Listing, *, limit: int = 100, cursor: str = "") -> Page:
        if listing.words and not self._read(self._has_words):
            raise UnsupportedError(
                "words cannot be searched for yet, as an earlier version made the index: run the "
                f"worker again, {program('worker')} ingest SOURCE"
            )
        sort = listing.sort or Sort("id")
        if sort.field == "id":
            ids, next_ = self._ids_of(listing, limit, cursor, descending=sort.descending)
        else:
            after = order.Position.of_cursor(cursor) if cursor else None
            positions = self._read(lambda: self._positions_of(listing, sort, limit + 1, after))
            ids = [position.id for position in positions[:limit]]
            next_ = positions[limit - 1].to_cursor() if len(positions) > limit else ""
        return Page(self._listed(ids, thumbnails=listing.thumbnails), next_)

    def _ids_of(
        self, listing: Listing, limit: int, cursor: str, *, descending: bool
    ) -> tuple[list[str], str]:
        where = listing_sql(listing)
        if cursor:
            where += f" AND id {'<' if descending else '>'} {literal(cursor)}"
        by_id = ColumnOrdering(column_name="id", ascending=not descending)
        ids = self._rows(["id"], where, limit=limit + 1, by=by_id)["id"].to_pylist()
        return ids[:limit], ids[limit - 1] if len(ids) > limit else ""

    def _positions_of(
        self, listing: Listing, sort: Sort, count: int, after: order.Position | None
    ) -> list[order.Position]:
        # LanceDB orders by columns alone, and metadata are fields of one.
        query = self._table.search().where(listing_sql(listing)).select(order.columns(sort))
        return order.first(query.limit(None).to_batches(), count, sort, after)

    def _listed(self, ids: Sequence[str], *, thumbnails: bool) -> list[Listed]:
        """Those that are still there, in the order of the ids."""
        if not ids:
            return []
        columns = ["id", "label", "metadata", *(["thumbnail"] if thumbnails else [])]
        rows = self._rows(columns, ids_sql(ids), limit=len(ids)).to_pylist()
        found = {
            row["id"]: Listed(
                row["id"], row["label"], json.loads(row["metadata"]), row.get("thumbnail") or b""
            )
            for row in rows
        }
        return [found[id_] for id_ in ids if id_ in found]

    def ids(self, prefix: str = "") -> Iterator[str]:
        # One scan, as each page of the list would sort what is left.
        yield from self._rows(["id"], prefix_sql(prefix))["id"].to_pylist()

    def labels(self) -> dict[str, int | None]:
        rows = self._rows(["label"])
        counts = {
            pair["values"]: pair["counts"] for pair in rows["label"].value_counts().to_pylist()
        }
        counts.pop(None, None)
        return dict(sorted(counts.items()))

    def count(self) -> int:
        return int(self._read(self._table.count_rows))

    def flush(self) -> None:
        with self._errors():
            with self.files.writing(), put_off_by_conflict("the column of words"):
                upkeep.add_words(self._table)
            upkeep.tidy(self._table, self.files, self._manifest.metric, self._resident.fits)
            self.files.sync()
            remove_former(self.files)
        if self.files.is_remote:  # a snapshot for this machine, which may never search
            return
        try:
            with self._errors():
                self._resident.refresh_snapshot()
        except StoreError as exc:
            _log.warning("no snapshot was written, and searches are slower: %s", exc.in_full)

    def close(self) -> None:
        self._resident.close()
        del self._table
        if self._reading is not None:
            self._reading.close()

    def descriptions(self) -> Iterator[tuple[str, str | None, Metadata]]:
        """Id, label and metadata of each record, in any order; cheaper than to fetch them."""
        rows = self._rows(["id", "label", "metadata"])
        columns = (rows[name].to_pylist() for name in ("id", "label", "metadata"))
        for id_, label, metadata in zip(*columns, strict=True):
            yield id_, label, json.loads(metadata)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._errors(), self.files.writing():
            self.check_in_use()
            yield
            self.files.sync()
            self._resident.look_again()

    def check_in_use(self) -> None:
        with self._errors():
            self._check_not_replaced()
            if self.files.in_use().generation > self.files.generation:
                raise _replaced(self.files)

    def _has_words(self) -> bool:
        return WORDS in self._table.schema.names

    def _errors(self) -> AbstractContextManager[None]:
        return self.files.errors()

    def keep_up(self) -> None:
        """What was committed stays so, even where upkeep fails; the next commit tries again."""
        try:
            with self._errors():
                metric = self._manifest.metric
                upkeep.keep_up(self._table, self.files, metric, self._resident.fits)
        except StoreError as exc:
            _log.warning("the index is not compacted, and searches become slower: %s", exc.in_full)

    def _rows(
        self,
        columns: list[str],
        where: str = "",
        *,
        limit: int | None = None,
        by: ColumnOrdering | None = None,
    ) -> Any:
        """These columns of the rows that a condition holds for, as Arrow's table."""

        def read() -> Any:
            # Already to begin a query is to read the table.
            query = self._table.search().select(columns).limit(limit)
            if where:
                query = query.where(where)
            return (query.order_by([by]) if by else query).to_arrow()

        return self._read(read)

    def _read(self, read: Callable[[], T]) -> T:
        """What `read` returns; it reads the newest version, and that may be removed meanwhile."""
        with self._errors():
            try:
                return read()
            except (OSError, RuntimeError, ValueError) as exc:
                if "not found" not in str(exc).lower():
                    raise
                return read()


def _check_not_replaced(table: Any, manifest_json: bytes | None, files: IndexFiles) -> None:
    """An open table goes on with another one that takes its place, and maybe its model's."""
    if tables.manifest_json(table) != manifest_json:
        raise _replaced(files)


def _replaced(files: IndexFiles) -> IndexReplacedError:
    return IndexReplacedError(
        "the index was replaced by another: open it again", details=files.address
    )
