"""What the worker and the service share: images, embeddings, the vector index, settings."""

import os
from importlib.metadata import version

# Read when LanceDB is imported: it warns on standard error of what is no fault.
os.environ.setdefault("LANCEDB_LOG", "error")

__version__ = version("image-search")
