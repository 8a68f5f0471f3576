"""Words that people search by in names and texts, whatever their case and accents."""

import unicodedata
from collections.abc import Mapping
from urllib.parse import unquote

from image_search.values import DIGEST_FIELD, MetadataValue


def words_of(text: str) -> list[str]:
    """The words of what was typed: a record has to contain each of them somewhere."""
    return folded(text).split()


def searchable(id_: str, label: str | None, metadata: Mapping[str, MetadataValue]) -> str:
    """What words are looked for in: the id, the label and all text of the metadata."""
    # Ids are percent-encoded.
    texts = [unquote(id_), label or ""]
    for field, value in metadata.items():
        if isinstance(value, list):
            texts += value
        elif isinstance(value, str) and field != DIGEST_FIELD:
            texts.append(value)
    return folded("\n".join(texts))


def folded(text: str) -> str:
    """Without case, accents and variants of width (Unicode's NFKD without nonspacing marks)."""
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(character for character in plain if unicodedata.category(character) != "Mn")
