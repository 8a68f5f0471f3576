"""The stores behind the one interface `image_search.index.VectorIndex`."""

from image_search.index import VectorIndex
from image_search.manifest import Manifest
from image_search.settings import Settings
from image_search.stores import embedded


def open_index(settings: Settings) -> VectorIndex:
    """The index that the settings name; raises IndexNotFoundError when there is none yet."""
    return embedded.open_index(settings)


def create_index(settings: Settings, manifest: Manifest) -> VectorIndex:
    """Create it with this manifest, or open the one that another process has just created."""
    return embedded.create_index(settings, manifest)
