"""The stores behind the one interface `image_search.index.VectorIndex`."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from image_search.errors import SettingsError
from image_search.index import VectorIndex
from image_search.manifest import Manifest
from image_search.object_storage import S3Folder
from image_search.recipe import Recipe
from image_search.settings import Settings

if TYPE_CHECKING:
    from image_search.stores.embedded.succession import Succession


def open_index(settings: Settings) -> VectorIndex:
    """The index that the settings name; raises IndexNotFoundError when there is none yet."""
    if settings.store == "pinecone":
        from image_search.stores import pinecone

        return pinecone.open_index(settings)
    from image_search.stores import embedded

    return embedded.open_index(settings)


def create_index(
    settings: Settings, manifest: Manifest, recipe: Recipe | None = None
) -> VectorIndex:
    """Create it with this manifest, or open the one that another process has just created.

    `recipe` is the one that the manifest names.
    """
    if settings.store == "pinecone":
        from image_search.stores import pinecone

        return pinecone.create_index(settings, manifest, recipe)
    from image_search.stores import embedded

    return embedded.create_index(settings, manifest, recipe)


def scratch_index(settings: Settings, manifest: Manifest) -> AbstractContextManager[VectorIndex]:
    """An index to try the store with: apart from all images, and nothing of it stays.

    Raises IndexNotFoundError where the store cannot make one before the first ingest.
    """
    if settings.store == "pinecone":
        from image_search.stores import pinecone

        return pinecone.scratch_index(settings, manifest)
    from image_search.stores import embedded

    return embedded.scratch_index(settings, manifest)


def rights(settings: Settings) -> str:
    """Say what the store lets the settings' key do.

    Raises StoreError with what is missing, whether that matters, and what to do.
    """
    if settings.store == "pinecone":
        from image_search.stores import pinecone

        return pinecone.rights(settings)
    if isinstance(settings.data_dir, S3Folder):
        return "those of the bucket, which the record below tries"
    return "none needed: the embedded store has no key"


def succession(settings: Settings) -> "AbstractContextManager[Succession]":
    """Make an index that takes the place of the one that the settings name.

    Raises SettingsError for Pinecone and object storage, IndexNotFoundError, and StoreError where
    another process makes one.
    """
    if settings.store == "pinecone":
        raise SettingsError(
            "an index at Pinecone cannot be replaced while others may write to it: ingest its "
            "images into a new one (--index NAME), and then set IMAGE_SEARCH_INDEX=NAME for the "
            "service"
        )
    if isinstance(settings.data_dir, S3Folder):
        raise SettingsError(
            "an index in object storage cannot be replaced while others may write to it, as there "
            "are no locks: ingest its images into a new one (--index NAME), and then set "
            "IMAGE_SEARCH_INDEX=NAME for the service"
        )
    from image_search.stores import embedded

    return embedded.succession(settings)
