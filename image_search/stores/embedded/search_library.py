"""FAISS, imported quietly, and without its types: they leave out what its Python classes take."""

import logging
from typing import Any

# It tells which instructions it was built for.
logging.getLogger("faiss.loader").setLevel(logging.WARNING)

import faiss as _faiss  # noqa: E402

faiss: Any = _faiss
