"""Install what a lock file lists into the environment that runs this, and say how far it is.

usage: .venv/bin/python tools/install.py LOCK

Pip alone says nothing for a minute, or hundreds of lines.
"""

import re
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

_SECONDS_BETWEEN: Final = 2.0
_FOUND: Final = re.compile(r"^(?:Collecting|Processing|Requirement already satisfied:) ")
_UNPACKING: Final = "Installing collected packages: "


def main() -> int:
    """Install; returns pip's exit code."""
    lock = Path(sys.argv[1])
    found = to_unpack = 0
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    # Modules are compiled when they are first imported, and most never are.
    command += ["--no-compile", "--progress-bar=off", "--requirement", str(lock)]
    before = _installed()
    print(f"installing what {lock.name} lists into {sys.prefix}", flush=True)

    def progress() -> str:
        if to_unpack:
            return f"  unpacked {_installed() - before} of {to_unpack} packages"
        return f"  downloaded, or found in pip's cache: {max(found - 1, 0)} packages"

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pip:  # noqa: S603
        lines = pip.stdout or ()
        with _Ticker(progress):
            for line in lines:
                if _FOUND.match(line):
                    found += 1
                elif line.startswith(_UNPACKING):
                    to_unpack = len(line.split(", "))
    if pip.returncode == 0:
        print(f"  {_installed() - before} packages installed", flush=True)
    return pip.returncode


def _installed() -> int:
    """How many packages the environment has."""
    return sum(1 for _ in Path(sysconfig.get_path("purelib")).glob("*.dist-info"))


class _Ticker:
    """Prints a text again and again while something runs, unless it is the same."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _tick(self) -> None:
        last = ""
        while not self._over.wait(_SECONDS_BETWEEN):
            text = self._text()
            if text != last:
                print(text, flush=True)
            last = text


if __name__ == "__main__":
    sys.exit(main())
