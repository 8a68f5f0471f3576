"""What keeps a table fast: compaction, removal of old versions, and the vector index.

What is due is read from the table, which all processes share: a process that starts anew, or one
that only deletes, goes on where others stopped.
"""

import logging
import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from lancedb.index import Bitmap, BTree, IvfSq

from image_search.stores.embedded.errors import put_off_by_conflict
from image_search.stores.embedded.files import IndexFiles
from image_search.stores.embedded.sql import WORDS
from image_search.stores.embedded.table import DISTANCE, WORDS_FIELD, words_of
from image_search.values import Metric

_log = logging.getLogger(__name__)

# Each commit leaves a fragment, which every query reads.
_MAX_SMALL_FRAGMENTS: Final = 25
# LanceDB rewrites a fragment when this share of its rows is deleted.
_MAX_DELETED_SHARE: Final = 0.1
_MIN_DELETED_ROWS: Final = 100
# Queries fail on the version that they read when it is removed, and are then asked again.
_KEEP_VERSIONS: Final = timedelta(minutes=10)
_MAX_OLD_VERSIONS: Final = 50

# Of fewer rows, all are read in some milliseconds.
_ROWS_FOR_INDEXES: Final = 10_000
# Where searches are answered from memory, the table is searched only until there is a snapshot.
# Without a vector index, one query of fewer rows then takes up to a tenth of a second.
_ROWS_FOR_VECTOR_INDEX_BESIDE_MEMORY: Final = 100_000
_VECTOR_INDEX: Final = "embedding_"
# To which words are added at once.
_ROWS_OF_WORDS: Final = 10_000
# Compaction indexes new rows in a segment of their own, whose fragments it does not join with
# others, and a query searches all segments.
_MAX_SEGMENTS: Final = 8
# Half the time of LanceDB's defaults, at the same recall on CIFAR-10's embeddings.
_KMEANS_ITERATIONS: Final = 10
_KMEANS_SAMPLES: Final = 64


def keep_up(table: Any, files: IndexFiles, metric: Metric, fits: Callable[[int], bool]) -> None:
    """What is due after a commit; cheap when nothing is.

    `fits` says of a number of rows whether searches of them are answered from memory.
    """
    if _is_due(table, files):
        _compact(table, files)
        _index(table, files, metric, fits, growth=4, segments=_MAX_SEGMENTS)


def tidy(table: Any, files: IndexFiles, metric: Metric, fits: Callable[[int], bool]) -> None:
    """Everything that makes queries faster, after many commits or a long time; see `keep_up`."""
    _compact(table, files)
    _index(table, files, metric, fits, growth=1.1, segments=_MAX_SEGMENTS // 2)


def add_words(table: Any) -> None:
    """Fill the column that words are looked for in, in a table of an earlier version."""
    if WORDS not in table.schema.names:
        table.add_columns(WORDS_FIELD)
    while True:
        query = table.search().where(f"{WORDS} IS NULL").select(["id", "label", "metadata"])
        rows = query.limit(_ROWS_OF_WORDS).to_arrow()
        if len(rows) == 0:
            return
        written = table.merge_insert("id").when_matched_update_all().execute(words_of(rows))
        if written.num_updated_rows == 0:  # deleted meanwhile
            return


def _is_due(table: Any, files: IndexFiles) -> bool:
    stats: dict[str, Any] = table.stats()
    fragments = stats["fragment_stats"]
    if fragments["num_small_fragments"] > _MAX_SMALL_FRAGMENTS:
        return True
    # The mean length, which counts deleted rows, is rounded down.
    deleted = fragments["num_fragments"] * fragments["lengths"]["mean"] - stats["num_rows"]
    if deleted > max(_MIN_DELETED_ROWS, _MAX_DELETED_SHARE * stats["num_rows"]):
        return True
    before = time.time() - (_KEEP_VERSIONS + files.clocks_differ).total_seconds()
    if files.versions_before(before) <= _MAX_OLD_VERSIONS:
        return False
    # Files are cheap to look at, but the time that counts is the one that the version has in it:
    # one of a clock that was ahead stays until then.
    old: int = sum(version["timestamp"].timestamp() < before for version in table.list_versions())
    return old > _MAX_OLD_VERSIONS


def _compact(table: Any, files: IndexFiles) -> None:
    """Join small files, index new rows, and remove old versions, and files of none."""
    with put_off_by_conflict("compaction"), files.cleaning() as may_clean:
        if not may_clean:
            _log.debug("compaction was postponed: another process is writing")
            return
        table.optimize(cleanup_older_than=_KEEP_VERSIONS + files.clocks_differ)


def _index(
    table: Any,
    files: IndexFiles,
    metric: Metric,
    fits: Callable[[int], bool],
    *,
    growth: float,
    segments: int,
) -> None:
    """Build the indexes for the first time, or that of vectors again.

    Again if the rows are `growth` times those that it was built for, or it has more `segments`.
    """
    rows = table.count_rows()
    if rows < _ROWS_FOR_INDEXES:
        return
    indexes = {index.columns[0]: index for index in table.list_indices()}
    with files.writing(), put_off_by_conflict("indexing"):
        if "id" not in indexes:
            table.create_index("id", config=BTree())
            table.create_index("label", config=Bitmap())
        old = indexes.get("embedding")
        if old is None and fits(rows) and rows < _ROWS_FOR_VECTOR_INDEX_BESIDE_MEMORY:
            return
        if (
            old is not None
            and rows < growth * int(old.name.removeprefix(_VECTOR_INDEX))
            and old.num_segments <= segments
            # Of an earlier version, whose partitions compaction has joined to one.
            and old.index_details.get("target_partition_size")
        ):
            return
        # 100 partitions of 50,000 rows, 600 of 1,000,000: so the probes scan little, and the index
        # is built in seconds. Given as a size, compaction keeps to it, and as a number it does not.
        partitions = rows**0.6 / 6.6
        config = IvfSq(
            distance_type=DISTANCE[metric],
            target_partition_size=math.ceil(rows / partitions),
            max_iterations=_KMEANS_ITERATIONS,
            sample_rate=_KMEANS_SAMPLES,
        )
        # The name tells for how many rows it was built; compaction adds some.
        new = f"{_VECTOR_INDEX}{rows}"
        table.create_index("embedding", config=config, name=new)
        if old is not None and old.name != new:
            table.drop_index(old.name)
