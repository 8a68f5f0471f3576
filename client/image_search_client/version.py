"""The version of this package, as it is installed."""

from importlib.metadata import version
from typing import Final

VERSION: Final = version("image-search-client")
