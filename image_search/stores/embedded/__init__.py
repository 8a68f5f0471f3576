"""The embedded store: LanceDB tables in a folder or in object storage, one table a namespace.

Any number of processes may read and write it at once. The manifest is part of the table's
schema, so it is there from the first moment on.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from image_search.errors import IndexNotFoundError, StoreError
from image_search.manifest import Manifest
from image_search.object_storage import S3Folder
from image_search.program import program
from image_search.recipe import Recipe
from image_search.settings import Settings
from image_search.stores.embedded import table
from image_search.stores.embedded.errors import errors_of_the_store
from image_search.stores.embedded.files import IndexFiles
from image_search.stores.embedded.index import EmbeddedIndex
from image_search.stores.embedded.local import LocalFiles
from image_search.stores.embedded.succession import Succession


def open_index(settings: Settings) -> EmbeddedIndex:
    """Open the index; raises IndexNotFoundError when there is none, StoreError if it is broken."""
    files = _files_of(settings)
    with files.errors():
        while True:
            is_there = files.has_table()
            reading = files.reading() if is_there else None
            newest = files.in_use()
            if newest == files:
                break
            # Another generation came into use before this one was held.
            if reading is not None:
                reading.close()
            files = newest
        if not is_there:
            raise IndexNotFoundError(
                f"there is no index {settings.index!r} with namespace {settings.namespace!r} "
                f"yet: ingest images first, {program('worker')} ingest SOURCE",
                details=f"data folder {settings.data_dir}",
            )
        return EmbeddedIndex.open(files, reading, _most_bytes(settings))


def create_index(
    settings: Settings, manifest: Manifest, recipe: Recipe | None = None
) -> EmbeddedIndex:
    """Create the index, or open the one that another process created in the meantime.

    Raises IndexMismatchError when its other namespaces have another metric.
    """
    with suppress(IndexNotFoundError):
        return open_index(settings)
    files = _files_of(settings)
    with files.errors():
        files.make_folder()
        connection = table.connect(files)
        for other in files.namespaces():
            other_json = table.manifest_json(connection.open_table(other.name))
            table.parse_manifest(other_json, other).require_metric(manifest.metric)
        return EmbeddedIndex.create(files, manifest, recipe, _most_bytes(settings))


@contextmanager
def succession(settings: Settings) -> Iterator[Succession]:
    """Make an index that takes the place of the one there is.

    Raises IndexNotFoundError, and StoreError where another process makes one.
    """
    files = _files_of(settings)
    with ExitStack() as held:
        with files.errors():
            is_alone = held.enter_context(files.if_not_refitting())
        if not is_alone:
            raise StoreError(
                "another process is fitting this index again: wait for it. If there is none, the "
                "file system has no locks: move the data folder to one that has"
            )
        with open_index(settings) as former:
            yield Succession(former, _most_bytes(settings))


@contextmanager
def scratch_index(settings: Settings, manifest: Manifest) -> Iterator[EmbeddedIndex]:
    """An index in a folder of its own in the data folder, which is removed afterwards."""
    with _scratch_folder(settings) as folder:
        scratch = settings.model_copy(update={"data_dir": folder})
        with create_index(scratch, manifest) as index:
            yield index


@contextmanager
def _scratch_folder(settings: Settings) -> Iterator[Path | S3Folder]:
    if isinstance(settings.data_dir, S3Folder):
        from image_search.stores.embedded.bucket import scratch_folder

        with scratch_folder(settings, settings.data_dir) as place:
            yield place
        return
    with errors_of_the_store(settings.data_dir):
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(dir=settings.data_dir, prefix="scratch-")
    with folder as name:
        yield Path(name)


def _files_of(settings: Settings) -> IndexFiles:
    if isinstance(settings.data_dir, S3Folder):
        from image_search.stores.embedded.bucket import BucketFiles

        return BucketFiles.of(settings, settings.data_dir)
    return LocalFiles.of(settings)


def _most_bytes(settings: Settings) -> int:
    return settings.index_memory << 20
