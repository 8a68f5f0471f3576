"""What HTML files of the worker have in common: they need nothing else, and escape all they show.

Labels and ids come from strangers' folders.
"""

import base64
from datetime import UTC, datetime

from jinja2 import Environment, PackageLoader, StrictUndefined

from image_search import __version__
from worker.sources.names import readable


def environment() -> Environment:
    """Jinja2 with the templates beside this module; `data_uri` makes an address of a JPEG.

    `readable` makes a name of an id.
    """
    templates = Environment(
        loader=PackageLoader("worker", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["data_uri"] = _data_uri
    templates.filters["readable"] = readable
    return templates


def made() -> str:
    """When and by what a page was made."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by image-search {__version__}"


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
