"""Writing to the index: what waits together is committed together."""

import asyncio
import logging
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from image_search.errors import RecordError, StoreError
from image_search.index import Record, VectorIndex
from image_search.values import DIGEST_FIELD
from service.batching import Stage

_log = logging.getLogger(__name__)

# A commit costs about the same for one record as for many.
_MAX_BATCH: Final = 64
_MAX_UPKEEP_BATCH: Final = 10_000


@dataclass(eq=False)
class _Job:
    index: VectorIndex
    id: str
    record: Record | None  # None: delete
    # Whether it was there before. Cancelled when nobody waits for it any more.
    future: "Future[bool]" = field(default_factory=Future)


class Writer:
    """The threads that write, in the order of the requests, and that keep the index fast."""

    def __init__(self) -> None:
        self._stage = Stage("write", self._write, self._fail, threads=1, max_batch=_MAX_BATCH)
        # Apart, as it can take seconds, and one time does for all commits before it.
        self._upkeep = Stage(
            "upkeep", _keep_up, self._fail_upkeep, threads=1, max_batch=_MAX_UPKEEP_BATCH
        )

    def start(self) -> None:
        """Start the threads, or those that have ended."""
        self._stage.start()
        self._upkeep.start()

    def close(self) -> None:
        """Finish what waits, and end the threads."""
        self._stage.close()
        self._upkeep.close()

    @property
    def alive(self) -> bool:
        """Whether the threads run."""
        return self._stage.alive and self._upkeep.alive

    async def upsert(self, index: VectorIndex, record: Record) -> bool:
        """Write a record durably; returns whether it is new.

        Cancelled, it may be written or not. Raises RecordError or StoreError.
        """
        return not await self._do(_Job(index, record.id, record))

    async def delete(self, index: VectorIndex, id_: str) -> bool:
        """Delete a record durably; returns whether there was one. Else as `upsert`."""
        return await self._do(_Job(index, id_, None))

    async def _do(self, job: _Job) -> bool:
        self._stage.put([job])
        return await asyncio.wrap_future(job.future)

    def _write(self, jobs: list[_Job]) -> None:
        wanted = [job for job in jobs if not job.future.cancelled()]
        for _, group in groupby(wanted, lambda job: (id(job.index), job.record is None)):
            commit = list(group)
            _commit(commit)
            self._upkeep.put([commit[0].index])

    def _fail(self, jobs: list[_Job], error: BaseException) -> None:
        _log.error("writing failed", exc_info=error)
        _fail(jobs, StoreError("writing failed: see the service's log"))

    def _fail_upkeep(self, _indexes: list[VectorIndex], error: BaseException) -> None:
        _log.error("the upkeep of the index failed", exc_info=error)


def _keep_up(indexes: list[VectorIndex]) -> None:
    for index in {id(index): index for index in indexes}.values():
        index.keep_up()


def _commit(jobs: list[_Job]) -> None:
    """Write jobs of one kind to one index."""
    index = jobs[0].index
    ids = [job.id for job in jobs]
    records = [job.record for job in jobs if job.record is not None]
    try:
        found = index.fetch(ids, thumbnails=False)
        present = set(found)
        if records:
            index.upsert(records, keep_up=False)
        else:
            # First, so that no ingest brings back what was answered to be gone.
            digests = {id_: record.metadata.get(DIGEST_FIELD) for id_, record in found.items()}
            if kept_out := {id_: str(digest) for id_, digest in digests.items() if digest}:
                index.save_deletions(kept_out)
            # Also what is not found: Pinecone's reads may lag behind its writes.
            index.delete(ids, keep_up=False)
    except RecordError as exc:
        if len(jobs) == 1:
            _fail(jobs, exc)
            return
        # One that the store refuses keeps the others from being written with it.
        for job in jobs:
            _commit([job])
    except StoreError as exc:
        _fail(jobs, exc)
    else:
        for job in jobs:
            with suppress(InvalidStateError):
                job.future.set_result(job.id in present)
            # Of one id several times, the first decides.
            present = present | {job.id} if job.record else present - {job.id}


def _fail(jobs: list[_Job], error: Exception) -> None:
    for job in jobs:
        with suppress(InvalidStateError):
            # A new error each time: one that is raised twice collects both tracebacks.
            job.future.set_exception(type(error)(*error.args))
