"""Ask the service on this machine how it is: python -m service.healthcheck. For containers."""

import json
import sys
import urllib.error
import urllib.request
from typing import Final

from image_search.errors import SettingsError
from image_search.settings import load_settings

_TIMEOUT_SECONDS: Final = 5.0


def main() -> int:
    """Print the answer of `/health` in a line; returns 0 when it is 200, else 1."""
    try:
        url = f"http://127.0.0.1:{load_settings().port}/health"
        # This machine is asked itself, and no proxy.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(url, timeout=_TIMEOUT_SECONDS) as response:
            answer = json.load(response)
            print(f"{answer['status']}: {answer['count']:,} images")
            return 0
    except urllib.error.HTTPError as exc:
        answer = json.load(exc)
        print(f"{answer['code']}: {answer['detail']}")
    except (OSError, SettingsError) as exc:
        print(f"not serving: {exc}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
