"""LanceDB, imported quietly and without what is not needed here."""

import os
import sys
from importlib.util import find_spec, module_from_spec
from typing import Any

__all__ = ["lancedb"]


def _import_once_used(name: str) -> None:
    """Let a package run its `__init__` when something of it is first asked for."""
    spec = find_spec(name)
    if name in sys.modules or spec is None or spec.loader is None:
        return
    loader, package = spec.loader, module_from_spec(spec)

    def load(attribute: str) -> Any:
        package.__dict__.pop("__getattr__", None)
        loader.exec_module(package)
        return getattr(package, attribute)

    package.__dict__["__getattr__"] = load
    sys.modules[name] = package


# LanceDB needs data classes of this package, but not its client of remote catalogues, which takes
# half a second to import: pydantic builds a validator for each of its methods.
_import_once_used("lance_namespace_urllib3_client")
# Read when LanceDB is imported: it warns on standard error of what is no fault.
os.environ.setdefault("LANCEDB_LOG", "error")

import lancedb  # noqa: E402
