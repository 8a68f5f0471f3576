"""What the worker and the service share: images, embeddings, the vector index, settings."""

from importlib.metadata import version

__version__ = version("image-search")
