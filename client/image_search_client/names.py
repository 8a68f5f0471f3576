"""Ids and times for people. The page of the service does the same."""

import re
from typing import Final
from urllib.parse import unquote_to_bytes

# One character as percent-encoded UTF-8 (RFC 3986, section 2.1; RFC 3629, section 3).
_ENCODED: Final = re.compile(
    "%[2-7][0-9A-F]|%[CD][0-9A-F]%[89AB][0-9A-F]"
    "|%E[0-9A-F](?:%[89AB][0-9A-F]){2}|%F[0-4](?:%[89AB][0-9A-F]){3}"
)
# What the worker leaves as it is in ids.
_NEVER_ENCODED: Final = re.compile(r"[\w\-./ !#$&'()+,;=@\[\]{}~^`]", re.ASCII)


def readable(id_: str) -> str:
    """The id as a name: `%C3%A9t%C3%A9-2.jpg` is été-2.jpg.

    What is not UTF-8 or not printable stays encoded, and so does what the worker would not have
    encoded, so that an id of another origin keeps its spelling.
    """
    return _ENCODED.sub(_decoded, id_)


def clock(seconds: float) -> str:
    """A time in a video: 0:12, or 1:02:03."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _decoded(found: re.Match[str]) -> str:
    encoded = found[0]
    try:
        character = unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        return encoded
    if _NEVER_ENCODED.fullmatch(character) or not character.isprintable():
        return encoded
    return character
