"""The stores behind the one interface `image_search.index.VectorIndex`."""

from contextlib import AbstractContextManager

from image_search.index import VectorIndex
from image_search.manifest import Manifest
from image_search.recipe import Recipe
from image_search.settings import Settings


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
