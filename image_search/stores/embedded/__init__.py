"""The embedded store: LanceDB tables in a folder, one table a namespace.

Any number of processes may read and write the folder at once. The manifest is part of the table's
schema, so it is there from the first moment on.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from image_search.errors import IndexNotFoundError
from image_search.manifest import Manifest
from image_search.recipe import Recipe
from image_search.settings import Settings
from image_search.stores.embedded import table
from image_search.stores.embedded.errors import errors_of_the_store
from image_search.stores.embedded.files import IndexFiles
from image_search.stores.embedded.index import EmbeddedIndex


def open_index(settings: Settings) -> EmbeddedIndex:
    """Open the index; raises IndexNotFoundError when there is none, StoreError if it is broken."""
    files = IndexFiles.of(settings)
    with errors_of_the_store(files.folder):
        if not files.has_table():
            raise IndexNotFoundError(
                f"there is no index {settings.index!r} with namespace {settings.namespace!r} "
                "yet: ingest images first, python -m worker ingest SOURCE",
                details=f"data folder {settings.data_dir}",
            )
        files.remove_empty_versions()
        opened = table.connect(files.folder).open_table(files.namespace)
        return EmbeddedIndex.of_table(opened, files)


def create_index(
    settings: Settings, manifest: Manifest, recipe: Recipe | None = None
) -> EmbeddedIndex:
    """Create the index, or open the one that another process created in the meantime.

    Raises IndexMismatchError when its other namespaces have another metric.
    """
    with suppress(IndexNotFoundError):
        return open_index(settings)
    files = IndexFiles.of(settings)
    with errors_of_the_store(files.folder):
        files.folder.mkdir(parents=True, exist_ok=True)
        connection = table.connect(files.folder)
        for other in files.namespaces():
            other_json = table.manifest_json(connection.open_table(other.namespace))
            table.parse_manifest(other_json, other).require_metric(manifest.metric)
        if recipe is not None:
            # Before the table, so that no manifest is seen without its recipe.
            files.write_recipe(recipe)
        try:
            created = connection.create_table(files.namespace, schema=table.schema(manifest))
        except ValueError as exc:
            if "already exists" not in str(exc):
                raise
            created = connection.open_table(files.namespace)
        else:
            # What an index of this name that was removed has left.
            files.remove_calibration()
            files.remove_sources()
            files.remove_deletions()
            files.remove_sample()
        files.sync()
        return EmbeddedIndex.of_table(created, files)


@contextmanager
def scratch_index(settings: Settings, manifest: Manifest) -> Iterator[EmbeddedIndex]:
    """An index in a folder of its own in the data folder, which is removed afterwards."""
    with errors_of_the_store(settings.data_dir):
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(dir=settings.data_dir, prefix="scratch-")
    with folder as name:
        scratch = settings.model_copy(update={"data_dir": Path(name)})
        with create_index(scratch, manifest) as index:
            yield index
