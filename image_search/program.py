"""How these programs are called here, so that messages name commands that can be pasted."""

import os
import shutil
import sys
from pathlib import Path
from typing import Final, Literal

_COMMAND: Final = "image-search-"


def program(name: Literal["service", "worker"]) -> str:
    """What runs a program: `python -m worker`, or `image-search-worker` if commands are installed.

    As this process was started itself: someone who has one may not have the other.
    """
    return f"{_COMMAND}{name}" if _is_command() else f"{_python()} -m {name}"


def install(extra: str) -> str:
    """What installs an extra, where these programs are."""
    if _is_command():
        return f"uv tool install '.[{','.join(sorted({'service', 'video', extra}))}]' in a checkout"
    return f"{_python()} -m pip install 'image-search[{extra}]'"


def or_make(text: str) -> str:
    """A text about make, where there may be a checkout; else nothing."""
    return "" if _is_command() else text


def _is_command() -> bool:
    return Path(sys.argv[0]).name.startswith(_COMMAND)


def _python() -> str:
    """`python` if that is this one, else its path if it is below this folder, as .venv is."""
    if shutil.which("python") == sys.executable:
        return "python"
    path = os.path.relpath(sys.executable)
    return "python" if path.startswith(os.pardir) else path
