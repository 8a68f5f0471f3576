"""What is known about an index, as records in a namespace of their own of the same index.

The manifest has the namespace as its id, and recipe and sample are there in parts: a tag of an
index holds 120 characters at most, belongs to all namespaces, and cannot be read with a
data-plane key.
"""

import base64
import hashlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from image_search.calibration import Calibration
from image_search.errors import IndexMismatchError, StoreError
from image_search.manifest import Manifest
from image_search.provenance import MOST_DELETIONS, KnownSource
from image_search.recipe import Recipe
from image_search.sample import ImageSample
from image_search.stores.pinecone.records import ANY_VECTOR, parts
from image_search.stores.pinecone.requests import (
    LIST_IDS,
    Requests,
    poll,
)
from image_search.values import DIGEST_FIELD

_log = logging.getLogger(__name__)

_NAMESPACE: Final = "__manifest__"
_SOURCES: Final = TypeAdapter(dict[str, KnownSource])
_DELETED_AT_ONCE: Final = 1_000  # Pinecone's limit
_SAMPLE_TRIES: Final = 5
_PART: Final = 36_000  # characters of base64, which fit into a record's metadata


class Facts:
    """What is known of one namespace of the index `name`."""

    def __init__(self, requests: Requests, name: str, namespace: str) -> None:
        self._requests = requests
        self._name = name
        self._manifest_id = namespace
        self._calibration_id = f"{namespace}/calibration"  # no namespace has a slash
        self._sample_id = f"{namespace}/sample"
        self._sources_id = f"{namespace}/sources"
        self._deletions_id = f"{namespace}/deletions"
        self.sample_version = ""  # as it was read

    def read(self) -> tuple[Manifest, Calibration | None] | None:
        """Manifest and calibration; None if there is no manifest.

        A calibration that cannot be read is told in the log, and None.
        Raises IndexMismatchError if this version cannot read the manifest.
        """
        ids = [self._manifest_id, self._calibration_id, self._sample_id]
        vectors = self._requests.run(lambda: self._requests.fetch(ids, _NAMESPACE))
        vector = vectors.get(self._manifest_id)
        if vector is None:
            return None
        try:
            if (sample := vectors.get(self._sample_id)) is not None:
                self.sample_version = sample.metadata["fingerprint"]
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
            self._tell_damaged(
                "calibration", "matches have no confidence until the worker runs again and fits it"
            )
            return None

    def _tell_damaged(self, what: str, without: str) -> None:
        _log.warning("the %s of Pinecone's index %r is damaged: %s", what, self._name, without)

    def write_manifest(self, manifest: Manifest) -> None:
        """Store the manifest, and wait until it can be read."""
        self._write({self._manifest_id: {"manifest": manifest.model_dump_json()}})

    def write_calibration(self, calibration: Calibration) -> None:
        """Replace the calibration, and wait until it can be read."""
        self._write({self._calibration_id: {"calibration": calibration.model_dump_json()}})

    def read_sources(self) -> dict[str, KnownSource]:
        """The sources by name; those that are damaged are left out, which is told in the log."""

        async def fetch() -> list[Any]:
            ids = await self._list(f"{self._sources_id}/")
            # Where earlier versions kept all of them.
            vectors = await self._requests.fetch([self._sources_id, *ids], _NAMESPACE)
            return [vectors[id_] for id_ in (self._sources_id, *ids) if id_ in vectors]

        sources: dict[str, KnownSource] = {}
        for vector in self._requests.run(fetch, self._requests.patience):
            try:
                sources |= _SOURCES.validate_json(vector.metadata["sources"])
            except (KeyError, TypeError, ValidationError):
                self._tell_damaged("list of sources", "they are known by their images in its place")
        return sources

    def write_source(self, name: str, source: KnownSource) -> None:
        """Add a source or replace it: a record each, as two workers may do so at once."""
        digest = hashlib.sha256(name.encode()).hexdigest()
        text = _SOURCES.dump_json({name: source}).decode()
        self._write({f"{self._sources_id}/{digest}": {"sources": text}})

    def read_deletions(self) -> dict[str, str]:
        """Digests of deleted images by id; the oldest beyond the bound are removed."""

        async def fetch() -> list[Any]:
            ids = await self._list(f"{self._deletions_id}/")
            vectors = await self._requests.fetch(ids, _NAMESPACE)
            return [vector.metadata for vector in vectors.values()]

        found = self._requests.run(fetch, self._requests.patience)
        found.sort(key=lambda metadata: float(metadata["time"]))
        beyond = found[:-MOST_DELETIONS]
        self.remove_deletions([metadata["id"] for metadata in beyond])
        return {metadata["id"]: metadata[DIGEST_FIELD] for metadata in found[len(beyond) :]}

    def write_deletions(self, deletions: Mapping[str, str]) -> None:
        """Add to what `read_deletions` gives."""
        if not deletions:
            return
        now = time.time()
        self._write(
            {
                self._deletion_id(id_): {"id": id_, DIGEST_FIELD: digest, "time": now}
                for id_, digest in deletions.items()
            }
        )

    def remove_deletions(self, ids: Collection[str]) -> None:
        """Take these ids out of what `read_deletions` gives."""
        self._delete_ids([self._deletion_id(id_) for id_ in ids])

    def _deletion_id(self, id_: str) -> str:
        return f"{self._deletions_id}/{hashlib.sha256(id_.encode()).hexdigest()}"

    def read_recipe(self, fingerprint: str) -> Recipe:
        """The recipe; raises StoreError if it or a part of it is missing."""

        try:
            return Recipe.from_bytes(self._read_parts(f"recipe/{fingerprint}"))
        except (KeyError, TypeError, ValueError) as exc:
            raise StoreError(
                f"Pinecone's index {self._name!r} lacks the recipe {fingerprint} or a "
                "part of it: use another index"
            ) from exc

    def write_recipe(self, recipe: Recipe) -> None:
        """Store the recipe, in parts as a record holds little, and wait until it can be read."""
        self._write_parts(f"recipe/{recipe.fingerprint}", recipe.to_bytes())

    def read_sample(self) -> ImageSample:
        """The newest sample; empty if there is none, or it is damaged, which is told in the log."""
        fingerprint = self._read_sample_version()
        if not fingerprint:
            return ImageSample()
        try:
            return ImageSample.from_bytes(self._read_parts(self._sample_parts(fingerprint)))
        except (KeyError, TypeError, ValueError):
            self._tell_damaged("sample", "it starts again with the next images")
            return ImageSample()

    def update_sample(self, change: Callable[[ImageSample], ImageSample]) -> None:
        """Replace the sample by what is made of it, and wait until it can be read.

        If another process replaces it meanwhile, it is made again, of that one.
        """
        for _ in range(_SAMPLE_TRIES):
            former = self._read_sample_version()
            sample = change(self.read_sample())
            fingerprint = sample.fingerprint
            if fingerprint == former:
                return
            self._write_parts(self._sample_parts(fingerprint), sample.to_bytes())
            if self._read_sample_version() != former:
                self._delete(self._sample_parts(fingerprint))
                continue
            self._write({self._sample_id: {"fingerprint": fingerprint}})
            if former:
                self._delete(self._sample_parts(former))
            if self._read_sample_version() == fingerprint:
                return

    def _read_sample_version(self) -> str:
        """The fingerprint of the newest sample; empty if there is none."""
        vectors = self._requests.run(lambda: self._requests.fetch([self._sample_id], _NAMESPACE))
        vector = vectors.get(self._sample_id)
        return str(vector.metadata["fingerprint"]) if vector else ""

    def _sample_parts(self, fingerprint: str) -> str:
        return f"{self._sample_id}/{fingerprint}"

    def _read_parts(self, name: str) -> bytes:
        """Raises KeyError, TypeError or ValueError where a part is missing or damaged."""

        async def fetch() -> str:
            first = f"{name}/0"
            vectors = await self._requests.fetch([first], _NAMESPACE)
            count = int(vectors[first].metadata["parts"])
            ids = [f"{name}/{number}" for number in range(count)]
            vectors |= await self._requests.fetch(ids[1:], _NAMESPACE)
            return "".join(vectors[id_].metadata["part"] for id_ in ids)

        return base64.b64decode(self._requests.run(fetch, self._requests.patience))

    def _write_parts(self, name: str, content: bytes) -> None:
        text = base64.b64encode(content).decode()
        pieces = [text[start : start + _PART] for start in range(0, len(text), _PART)]
        self._write(
            {
                f"{name}/{number}": {"part": piece, "parts": len(pieces)}
                for number, piece in enumerate(pieces)
            }
        )

    def _delete(self, name: str) -> None:
        """Delete what `_write_parts` wrote."""

        self._delete_ids(
            self._requests.run(lambda: self._list(f"{name}/"), self._requests.patience)
        )

    def _delete_ids(self, ids: Sequence[str]) -> None:
        """Delete the records, and wait until they are not read any more."""

        async def delete_and_wait() -> None:
            part: list[str] = []
            for start in range(0, len(ids), _DELETED_AT_ONCE):
                part = list(ids[start : start + _DELETED_AT_ONCE])
                request = partial(self._requests.index.delete, ids=part, namespace=_NAMESPACE)
                await self._requests.send("delete", _NAMESPACE, request)

            # Those before it are gone by then: writes are seen in their order.
            async def is_gone() -> bool:
                return not await self._requests.fetch(part, _NAMESPACE)

            await poll(is_gone)

        self._requests.run(delete_and_wait, self._requests.patience)

    async def _list(self, prefix: str) -> list[str]:
        ids: list[str] = []
        token = ""
        while True:
            page = await self._requests.list_ids(_NAMESPACE, prefix, LIST_IDS, token)
            ids += page.ids
            token = page.cursor
            if not token:
                return ids

    def _write(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        records = [
            {"id": id_, "values": ANY_VECTOR, "metadata": metadata}
            for id_, metadata in facts.items()
        ]

        async def read() -> dict[str, dict[str, Any]]:
            found = await self._requests.fetch(list(facts), _NAMESPACE)
            return {id_: dict(vector.metadata or {}) for id_, vector in found.items()}

        async def write_and_wait() -> None:
            before = await read()
            for part in parts(records):
                await self._requests.upsert(part, _NAMESPACE)

            # What is neither this nor what was there before, another process has written since.
            async def is_seen() -> bool:
                found = await read()
                return all(
                    id_ in found and (found[id_] == dict(fact) or found[id_] != before.get(id_))
                    for id_, fact in facts.items()
                )

            await poll(is_seen)

        self._requests.run(write_and_wait, self._requests.patience)
