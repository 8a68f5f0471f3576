"""What a user runs first: whether this machine and the store do what the worker needs of them.

Each check gives one line, which says what to do where it fails. Nothing is shown that is secret.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

import numpy as np

import image_search
from image_search.embedding import Embedder, has_gpu
from image_search.errors import ImageSearchError, IndexNotFoundError, StoreError
from image_search.index import Record, VectorIndex
from image_search.manifest import Manifest, ModelSpec
from image_search.settings import Settings, variable
from image_search.stores import open_index, rights, scratch_index
from image_search.values import DIMENSION, Metadata
from image_search.weights import choose_weights
from worker.model import load_embedder

_LEAST_DISK: Final = 1 << 30
# For the weights alone: any size does.
_INPUT_SIZE: Final = 96
# The scratch index holds no images of any model.
_NO_MODEL: Final = ModelSpec(
    weights="none", fingerprint="0" * 16, input_size=32, preprocessing=1, precision="float32"
)


class Finding(NamedTuple):
    """What one check found; a failed one says what to do."""

    check: str
    is_well: bool
    text: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Check everything, one after the other; a failure keeps none of the others from running."""
    yield _checked("settings", lambda: _settings(settings))
    yield _checked("clock", _clock)
    yield _checked("disk", lambda: _disk(settings))
    yield _checked("gpu", _gpu)
    yield _checked("rights", lambda: rights(settings))
    yield _checked("index", lambda: _index(settings))
    yield _checked("records", lambda: _records(settings))
    yield _checked("weights", lambda: _weights(settings))


def _checked(check: str, run: Callable[[], str]) -> Finding:
    try:
        return Finding(check, is_well=True, text=run())
    except ImageSearchError as exc:
        return Finding(check, is_well=False, text=exc.in_full)


def _settings(settings: Settings) -> str:
    where = f"data folder {settings.data_dir}" if settings.store == "embedded" else "Pinecone"
    host = settings.pinecone_index_host if settings.store == "pinecone" else ""
    return (
        f"image-search {image_search.__version__}, store {settings.store} ({where}"
        f"{f', index host {host}' if host else ''}), index {settings.index}, "
        f"namespace {settings.namespace}"
    )


def _clock() -> str:
    now = datetime.now(UTC)
    installed = datetime.fromtimestamp(Path(image_search.__file__).stat().st_mtime, UTC)
    if now < installed:
        raise ImageSearchError(
            f"the clock says {now:%Y-%m-%d %H:%M} UTC, which is before this program was installed "
            f"({installed:%Y-%m-%d}): set it, as certificates and retries depend on it"
        )
    return f"{now:%Y-%m-%d %H:%M:%S} UTC"


def _disk(settings: Settings) -> str:
    folder = settings.local_dir.absolute()
    choice = variable("data_dir") if settings.local_dir == settings.data_dir else "XDG_CACHE_HOME"
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(
            f"the folder {folder} may not be written to: change its owner, or set "
            f"{choice} to another one"
        )
    free = shutil.disk_usage(folder).free
    if free < _LEAST_DISK:
        raise StoreError(
            f"{free / _LEAST_DISK:.1f} GiB are free in {folder}, and at least 1 is needed: make "
            f"room, or set {choice} to another disk"
        )
    return f"{free / _LEAST_DISK:,.0f} GiB free in {folder}"


def _gpu() -> str:
    return "found" if has_gpu() else "none found: images are embedded on the CPU"


def _index(settings: Settings) -> str:
    started = time.monotonic()
    try:
        with open_index(settings) as index:
            text = f"{index.count():,} images, {index.manifest.metric}, {index.manifest.model}"
    except IndexNotFoundError as exc:
        text = str(exc)
    return f"{text}; answered in {time.monotonic() - started:.1f} s"


def _records(settings: Settings) -> str:
    """Write a record, find it in every way, and remove it."""
    with scratch_index(settings, Manifest.new(_NO_MODEL, settings.metric, "scratch")) as index:
        # All characters that an address may spell otherwise.
        name = f"doctor {uuid4().hex} +%&#?/a b"
        embedding = np.random.default_rng().standard_normal(DIMENSION).astype(np.float32)
        metadata: Metadata = {"number": 3, "text": "ü"}
        # Without a label, of which Pinecone would keep a record.
        record = Record(name, embedding, None, metadata, b"thumbnail", uuid4().hex)
        try:
            started = time.monotonic()
            index.upsert([record])
            written = time.monotonic() - started
            index.flush()
            wrong = _wrong_with(index, record, is_remote=settings.store == "pinecone")
            seen = time.monotonic() - started - written
        finally:
            index.delete([name])
        index.flush()
        if index.fetch([name]):
            wrong.append("it is still there after it was deleted")
    if wrong:
        raise StoreError(
            f"a record in a scratch namespace was written, but {', and '.join(wrong)}: report this "
            "line, please"
        )
    return (
        f"one was written in {written:.1f} s, found {seen:.1f} s later by id, prefix, vector and "
        "filter, and removed"
    )


def _wrong_with(index: VectorIndex, record: Record, *, is_remote: bool) -> list[str]:
    """In what ways the record is not found as it was written."""
    found = index.fetch([record.id]).get(record.id)
    matches = index.query(record.embedding, 1)
    known = index.held({record.id: record.state})
    return [
        what
        for what, is_wrong in (
            ("its id does not find it", found is None),
            (
                "its content came back changed",
                found is not None
                and (found.label, found.metadata, found.thumbnail)
                != (record.label, record.metadata, record.thumbnail),
            ),
            (
                "its embedding came back changed",
                found is not None and not np.allclose(found.embedding, record.embedding, atol=1e-6),
            ),
            ("its vector does not find it", record.id not in {match.id for match in matches}),
            ("its prefix does not list it", record.id not in index.list_ids(prefix="doctor ").ids),
            ("its state is not known", is_remote and record.id not in known),
        )
        if is_wrong
    ]


def _weights(settings: Settings) -> str:
    started = time.monotonic()
    try:
        with open_index(settings) as index:
            embedder = load_embedder(index, settings)
    except (IndexNotFoundError, StoreError):
        embedder = Embedder.load(choose_weights(settings.weights), _INPUT_SIZE)
    embedder.warm_up()
    return f"{embedder.model}; ran in {time.monotonic() - started:.1f} s"


def as_line(finding: Finding) -> str:
    """One line of a report."""
    text = " ".join(finding.text.split())
    return f"{'ok' if finding.is_well else 'FAILED':8}{finding.check:10}{text}"
