"""The command image-search-service: the service, where what it needs is installed."""

import sys
from typing import Final

from image_search.program import install

# Of the extra `service`, what is imported first.
_NEEDED: Final = {"fastapi", "fastapi_offline", "httptools", "prometheus_client", "uvicorn"}


def main() -> int:
    """Serve as `python -m service` does; returns the exit code."""
    try:
        from service.__main__ import main as serve
    except ModuleNotFoundError as exc:
        if exc.name not in _NEEDED:
            raise
        print(
            f"error: {exc.name} is not installed; to serve: {install('service')}",
            file=sys.stderr,
        )
        return 1
    return serve()
