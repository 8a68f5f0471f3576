"""Names of files as people read them, and the ids that are made of them."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, unquote

from image_search.values import MAX_ID_LENGTH

# What old systems wrote names in: DOS and Windows in the west, in Russia, and in Japan.
_LEGACY_ENCODINGS: Final = ("cp437", "cp1252", "cp932", "cp866", "cp1251")
_GUESSED_FROM: Final = 1000
# What a letter of a script tells against the encoding that it comes from. A kana tells less than
# others, and scripts that are read from the bytes of another language more.
_COSTS: Final = {"HIRAGANA": 0.5, "KATAKANA": 0.5, "CJK": 1.0, "LATIN": 1.0, "CYRILLIC": 1.0}
_ODD: Final = 3.0
_ODD_ASCII: Final = re.compile(r"[\[\]\\{}|^`~@]")
_JAPANESE: Final = {"HIRAGANA", "KATAKANA", "CJK", "KATAKANA-HIRAGANA"}
# The first byte of a character of JIS level 2, which few names have, in cp932.
_RARE_KANJI: Final = 0x98


def legacy_encoding(names: Iterable[bytes]) -> str:
    """The encoding in which names that are not UTF-8 read best; a guess, the same every time."""
    sample = [name for name, _ in zip(names, range(_GUESSED_FROM), strict=False)]
    return min(_LEGACY_ENCODINGS, key=lambda encoding: sum(_cost(n, encoding) for n in sample))


def decoded(name: bytes, encoding: str) -> str:
    """A name as text; what the encoding does not have becomes U+FFFD."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode(encoding, "replace")


def _cost(name: bytes, encoding: str) -> float:
    try:
        text = name.decode(encoding)
    except UnicodeDecodeError:
        return 10.0 * len(name)
    cost = 2.0 * len(_ODD_ASCII.findall(text))
    for word in re.findall(r"\w+|[^\w\s]", text):
        scripts = {_script(character) for character in word if character.isalpha()}
        if len(scripts) > 1 and not scripts <= _JAPANESE:
            cost += _ODD
        # Words have few accented letters, or capitals after small ones, side by side.
        cost += len(re.findall(r"(?<=[\u00c0-\u024f])[\u00c0-\u024f]", word))
        if not word.islower() and not word[1:].islower() and not word.isupper() and len(word) > 1:
            cost += _ODD if any(c.isupper() for c in word[1:] if not c.isascii()) else 0
        for character in word:
            if character.isascii():
                continue
            odd = not character.isalpha() or (
                encoding == "cp932"
                and _script(character) == "CJK"
                and character.encode("cp932")[0] >= _RARE_KANJI
            )
            cost += _ODD if odd else _COSTS.get(_script(character), _ODD)
    return cost


def _script(character: str) -> str:
    return unicodedata.name(character, "?").partition(" ")[0]


def composed(name: str) -> str:
    """The name in Unicode's form C: what looks alike is alike."""
    return unicodedata.normalize("NFC", name)


def printable(text: str) -> str:
    """The text as one line that every terminal can show: control characters become escapes."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def is_text(name: str) -> bool:
    """Whether a name that the file system gave is text, and no bytes in disguise."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def as_text(name: str) -> str:
    """A name that the file system gave, as it can be stored and shown."""
    if is_text(name):
        return name
    raw = file_bytes(name)
    return decoded(raw, legacy_encoding([raw]))


def id_of(path: bytes) -> str:
    """A path as printable ASCII, percent-encoded where need be, cut to the length of an id."""
    encoded = quote(path, safe="/ !#$&'()+,;=@[]{}~^`")
    if len(encoded) <= MAX_ID_LENGTH:
        return encoded
    digest = hashlib.sha256(path).hexdigest()
    return f"{encoded[: MAX_ID_LENGTH - len(digest) - 1]}~{digest}"


def readable(id_: str) -> str:
    """The path that `id_of` made an id of, in one line; an id of another origin as it is."""
    path = unquote(id_)
    return printable(path) if id_of(path.encode()) == id_ else id_


def file_bytes(name: str) -> bytes:
    """The bytes of a name that the file system, or a tar archive, gave as text."""
    return os.fsencode(name)
