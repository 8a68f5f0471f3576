"""What keeps a table fast: compaction, and the vector index."""

from datetime import timedelta
from typing import Any, Final

from lancedb.index import Bitmap, BTree, IvfSq

from image_search.stores.embedded.errors import put_off_by_conflict
from image_search.stores.embedded.table import DISTANCE
from image_search.values import Metric

COMMITS_BETWEEN_COMPACTIONS: Final = 25
# Readers fail when the version that they read is deleted; no query takes this long.
_KEEP_VERSIONS: Final = timedelta(minutes=10)

# Below this many rows a scan of them all is as fast as an index, and exact.
_ROWS_FOR_VECTOR_INDEX: Final = 10_000
_VECTOR_INDEX: Final = "embedding_"
# Half the time of LanceDB's defaults, at the same recall on CIFAR-10's embeddings.
_KMEANS_ITERATIONS: Final = 10
_KMEANS_SAMPLES: Final = 64


def compact(table: Any) -> None:
    """Join small files, and delete those of old versions."""
    with put_off_by_conflict("compaction"):
        table.optimize(cleanup_older_than=_KEEP_VERSIONS)


def build_vector_index(table: Any, metric: Metric, growth: int) -> None:
    """Build it for the first time, or again if the rows are `growth` times those then."""
    with put_off_by_conflict("indexing"):
        _build_vector_index(table, metric, growth)


def _build_vector_index(table: Any, metric: Metric, growth: int) -> None:
    rows = table.count_rows()
    if rows < _ROWS_FOR_VECTOR_INDEX:
        return
    names = {index.columns[0]: index.name for index in table.list_indices()}
    if "id" not in names:
        table.create_index("id", config=BTree())
        table.create_index("label", config=Bitmap())
    old = names.get("embedding")
    # Compaction adds new rows to the index, so its name keeps how many it was made for.
    if old is None or rows >= growth * int(old.removeprefix(_VECTOR_INDEX)):
        config = IvfSq(
            distance_type=DISTANCE[metric],
            # 100 of 50,000 rows, 600 of 1,000,000: so the probes scan little, and the index is
            # built in seconds.
            num_partitions=round(rows**0.6 / 6.6),
            max_iterations=_KMEANS_ITERATIONS,
            sample_rate=_KMEANS_SAMPLES,
        )
        new = f"{_VECTOR_INDEX}{rows}"
        table.create_index("embedding", config=config, name=new)
        if old not in {None, new}:
            table.drop_index(old)
