"""Make the synchronous client from the asynchronous one.

usage: python tools/sync_client.py
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).resolve().parent.parent / "client" / "image_search_client"
SOURCE: Final = PACKAGE / "async_client.py"
TARGET: Final = PACKAGE / "client.py"

_DOCSTRING: Final = (
    '"""The synchronous client. Made by `tools/sync_client.py`: change async_client.py."""'
)
_REPLACEMENTS: Final = [
    (r'\A""".*?"""', _DOCSTRING),
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsync(Client|Iterator|BaseTransport|HTTPTransport)\b", r"\1"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\baclose\b", "close"),
    (r"\baio\b", "threads"),
]


def generate() -> str:
    """The text of the synchronous client."""
    text = SOURCE.read_text()
    for pattern, replacement in _REPLACEMENTS:
        text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    for command in (["check", "--select", "I", "--fix", "--quiet"], ["format"]):
        text = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "ruff", *command, f"--stdin-filename={TARGET}", "-"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return text


if __name__ == "__main__":
    TARGET.write_text(generate())
