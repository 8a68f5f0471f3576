"""What is known about an index, as records in a namespace of their own of the same index.

The manifest has the namespace as its id, and the recipe is there in parts: a tag of an index holds
120 characters at most, belongs to all namespaces, and is not to be had with a data-plane key.
"""

import asyncio
import base64
import logging
from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from image_search.calibration import Calibration
from image_search.errors import IndexMismatchError, StoreError
from image_search.manifest import Manifest
from image_search.recipe import Recipe
from image_search.stores.pinecone.records import ANY_VECTOR, parts
from image_search.stores.pinecone.requests import FIRST_DELAY, Requests

_log = logging.getLogger(__name__)

_NAMESPACE: Final = "__manifest__"
_SOURCES: Final = TypeAdapter(dict[str, str])
_PART: Final = 36_000  # characters of base64, which fit into a record's metadata


class Facts:
    """Manifest, calibration, sources and recipe of one namespace of the index `name`."""

    def __init__(self, requests: Requests, name: str, namespace: str) -> None:
        self._requests = requests
        self._name = name
        self._manifest_id = namespace
        self._calibration_id = f"{namespace}/calibration"  # no namespace has a slash
        self._sources_id = f"{namespace}/sources"

    def read(self) -> tuple[Manifest, Calibration | None] | None:
        """Manifest and calibration; None if there is no manifest.

        A calibration that cannot be read is told in the log, and None.
        Raises IndexMismatchError if this version cannot read the manifest.
        """
        ids = [self._manifest_id, self._calibration_id]
        vectors = self._requests.run(lambda: self._requests.fetch(ids, _NAMESPACE))
        vector = vectors.get(self._manifest_id)
        if vector is None:
            return None
        try:
            manifest = Manifest.model_validate_json((vector.metadata or {})["manifest"])
        except (KeyError, TypeError, ValidationError) as exc:
            raise IndexMismatchError(
                f"Pinecone's index {self._name!r} has a manifest that this version does "
                "not read: use another index"
            ) from exc
        return manifest, self._calibration_of(vectors.get(self._calibration_id))

    def _calibration_of(self, vector: Any) -> Calibration | None:
        if vector is None:
            return None
        try:
            return Calibration.model_validate_json((vector.metadata or {})["calibration"])
        except (KeyError, TypeError, ValidationError):
            _log.warning(
                "the calibration of Pinecone's index %r is damaged: matches have no confidence "
                "until the worker runs again and fits it",
                self._name,
            )
            return None

    def write_manifest(self, manifest: Manifest) -> None:
        """Store the manifest, and wait until it can be read."""
        self._write({self._manifest_id: {"manifest": manifest.model_dump_json()}})

    def write_calibration(self, calibration: Calibration) -> None:
        """Replace the calibration, and wait until it can be read."""
        self._write({self._calibration_id: {"calibration": calibration.model_dump_json()}})

    def read_sources(self) -> dict[str, str]:
        """Where sources are, by name; raises StoreError if that cannot be read."""
        vectors = self._requests.run(lambda: self._requests.fetch([self._sources_id], _NAMESPACE))
        vector = vectors.get(self._sources_id)
        try:
            return _SOURCES.validate_json(vector.metadata["sources"]) if vector else {}
        except (KeyError, TypeError, ValidationError) as exc:
            raise StoreError(
                f"Pinecone's index {self._name!r} does not say in a form that this version reads "
                "which sources it has: use another index"
            ) from exc

    def write_sources(self, sources: Mapping[str, str]) -> None:
        """Replace what `read_sources` gives."""
        text = _SOURCES.dump_json(dict(sources)).decode()
        if len(text) > _PART:
            raise StoreError("the index has too many sources: give their parent folder instead")
        self._write({self._sources_id: {"sources": text}})

    def read_recipe(self, fingerprint: str) -> Recipe:
        """The recipe; raises StoreError if it or a part of it is missing."""

        async def fetch() -> str:
            first = _part_id(fingerprint, 0)
            vectors = await self._requests.fetch([first], _NAMESPACE)
            count = int(vectors[first].metadata["parts"])
            ids = [_part_id(fingerprint, number) for number in range(count)]
            vectors |= await self._requests.fetch(ids[1:], _NAMESPACE)
            return "".join(vectors[id_].metadata["part"] for id_ in ids)

        try:
            text = self._requests.run(fetch, self._requests.patience)
            return Recipe.from_bytes(base64.b64decode(text))
        except (KeyError, TypeError, ValueError) as exc:
            raise StoreError(
                f"Pinecone's index {self._name!r} lacks the recipe {fingerprint} or a "
                "part of it: use another index"
            ) from exc

    def write_recipe(self, recipe: Recipe) -> None:
        """Store the recipe, in parts as a record holds little, and wait until it can be read."""
        text = base64.b64encode(recipe.to_bytes()).decode()
        pieces = [text[start : start + _PART] for start in range(0, len(text), _PART)]
        self._write(
            {
                _part_id(recipe.fingerprint, number): {"part": piece, "parts": len(pieces)}
                for number, piece in enumerate(pieces)
            }
        )

    def _write(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        records = [
            {"id": id_, "values": ANY_VECTOR, "metadata": metadata}
            for id_, metadata in facts.items()
        ]

        async def write_and_wait() -> None:
            for part in parts(records):
                await self._requests.upsert(part, _NAMESPACE)
            while len(await self._requests.fetch(list(facts), _NAMESPACE)) < len(facts):
                await asyncio.sleep(FIRST_DELAY)

        self._requests.run(write_and_wait, self._requests.patience)


def _part_id(fingerprint: str, number: int) -> str:
    return f"recipe/{fingerprint}/{number}"  # no namespace has a slash
