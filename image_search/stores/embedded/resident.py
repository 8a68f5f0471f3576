"""The index that searches are answered from: in memory and mapped files, beside the table.

It has a view of one version of the table: a snapshot, less its rows that are gone since, and in
memory the rows that are in no snapshot. Each search looks whether there is a newer version, which
costs a look at a folder, and follows it before it answers. Where that would take long, or memory
does not suffice, the table itself is searched, and a thread catches up.

Where the table is remote, a look takes requests: as long as there are searches, a thread looks and
follows, and they are answered from the version that it found last.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa

from image_search.errors import StoreError
from image_search.filters import Filter
from image_search.stores.embedded import table as tables
from image_search.stores.embedded.files import IndexFiles, sync_folder
from image_search.stores.embedded.locks import if_unused
from image_search.stores.embedded.scores import Lengths, lengths_of
from image_search.stores.embedded.snapshot import (
    BYTES_A_ROW,
    COLUMNS,
    Addresses,
    DamagedSnapshotError,
    Mask,
    Rows,
    Snapshot,
    are_among,
    flat_index,
    open_snapshot,
    versions_in,
    write_snapshot,
)
from image_search.stores.embedded.sql import filter_sql
from image_search.values import Embeddings, Metric

_log = logging.getLogger(__name__)

# So many rows are compared one by one, in about a millisecond; where there are more, a snapshot has
# all but so many.
_MOST_ROWS_IN_MEMORY: Final = 10_000
# Of larger tables, finding what has changed takes longer than a search of the table.
_MOST_ROWS_FOLLOWED_AT_ONCE: Final = 200_000
# `refresh_snapshot` writes one where this share of the rows came or went since the last.
_MOST_CHANGED_SHARE: Final = 0.02
_FILTERS_REMEMBERED: Final = 64

# A commit changes the time of the folder of versions, but not twice within one tick of the file
# system's clock. Whatever that says, the table itself is asked every half second.
_SECONDS_OF_A_TICK: Final = 0.05
_SECONDS_BETWEEN_LOOKS: Final = 0.5
# What is remote is looked at as often, and until there was no search for so long; searches look for
# themselves where the thread has not come to its end for so long.
_SECONDS_UNTIL_IDLE: Final = 30.0
_MOST_SECONDS_BEHIND: Final = 2.0
# Snapshots are written a tenth of the time at most, and once a minute where that fails.
_SECONDS_BETWEEN_TRIES: Final = 0.5
_PAUSE_PER_WRITING: Final = 9
_SECONDS_AFTER_FAILURE: Final = 60.0
# What LanceDB, FAISS and Arrow raise for what is missing, damaged or too large.
_ERRORS: Final = (OSError, RuntimeError, ValueError, MemoryError)


@dataclass(frozen=True)
class Recent:
    """The rows that are in no snapshot: in memory, and compared one by one."""

    addresses: Addresses  # in order
    vectors: Embeddings
    lengths: Lengths
    rows: Rows
    table: pa.Table
    flat: Any

    @classmethod
    def of(cls, table: pa.Table, metric: Metric) -> Self:
        """Of rows with all columns and their addresses."""
        table = table.sort_by("_rowid").combine_chunks()
        vectors = tables.embeddings_of(table)
        addresses = _addresses_in(table)
        flat = flat_index(vectors, metric)
        return cls(addresses, vectors, lengths_of(vectors), Rows.of(table), table, flat)

    def __len__(self) -> int:
        return len(self.addresses)


@dataclass(frozen=True)
class View:
    """One version of the table, at which `table` stays. `alive` are the snapshot's rows in it.

    Two of one `history` have the same row where they have the same address.
    """

    history: int
    version: int
    table: Any
    snapshot: Snapshot | None
    alive: Mask
    recent: Recent
    _passing: dict[str, tuple[Mask, Mask]] = field(default_factory=dict)

    def passing(self, filter_: Filter | None) -> tuple[Mask, Mask | None]:
        """Which rows of the snapshot, and which recent ones, pass the filter; None for all."""
        if filter_ is None:
            return self.alive, None
        # By its SQL, as filters for 0 and for false are equal. Two threads may both find out.
        condition = filter_sql(filter_)
        masks = self._passing.get(condition)
        if masks is None:
            query = self.table.search().where(condition).with_row_id(with_row_id=True)
            addresses = _addresses_in(query.select(["_rowid"]).limit(None).to_arrow())
            addresses.sort()
            old = self.alive
            if self.snapshot is not None:
                old = are_among(self.snapshot.addresses, addresses)
            masks = (old, are_among(self.recent.addresses, addresses))
            while len(self._passing) >= _FILTERS_REMEMBERED:
                self._passing.pop(next(iter(self._passing)), None)
            self._passing[condition] = masks
        return masks


class Resident:
    """Gives many threads the view to search in, unless `most_bytes` do not suffice for it.

    `table` is always at its newest version. `open_table` opens another handle of it, and `check`
    raises where another table has taken its place.
    """

    def __init__(
        self,
        table: Any,
        files: IndexFiles,
        identity: bytes,
        metric: Metric,
        most_bytes: int,
        open_table: Callable[[], Any],
        check: Callable[[], None],
    ) -> None:
        self._table = table
        self._files = files
        self._identity = identity
        self._metric: Metric = metric
        self._most_bytes = most_bytes
        self._open_table = open_table
        self._check = check
        # The newest version, how the table's folders were then, since when it is so, and until
        # when they are believed if they say that there is no newer one.
        self._looking = threading.Lock()
        self._version = -1
        self._history = 0
        self._folders = ((0, 0), (0, 0))
        self._folder_since = 0.0
        self._believed_until = -math.inf
        # When the view was last known to be of the newest version; this process's writes, after
        # which it is not; and the thread that looks, with the time of the last search.
        self._confirmed = -math.inf
        self._writes = 0
        self._looker: threading.Thread | None = None
        self._searched = -math.inf
        # The view of the newest version, or of one before; and a version that there is none of.
        self._making = threading.Lock()
        self._view: View | None = None
        self._without = -1
        self._is_large: bool | None = None
        self._fits = True
        self._thread: threading.Thread | None = None
        self._not_before = -math.inf
        self._told = ""
        self._closing = threading.Event()

    def view(self) -> View | None:
        """The newest version; None where the table has to be searched. Raises as LanceDB.

        Where the table is remote, it may be one of some moments ago, but has all that this process
        has written.
        """
        if self._most_bytes == 0:
            return None
        if not self._files.is_remote:
            return self._newest_view()
        self._let_look()
        view = self._view
        if view is not None and time.monotonic() - self._confirmed < _MOST_SECONDS_BEHIND:
            return view
        return self._confirmed_view()

    @property
    def has_newest(self) -> bool:
        """Whether the view is that of the newest version that is known."""
        return self._view_at(self._version) is not None

    def fits(self, rows: int) -> bool:
        """Whether searches of so many rows are answered from memory.

        Of a remote table that is not known: each machine makes a snapshot when it searches first.
        """
        return not self._files.is_remote and rows * BYTES_A_ROW <= self._most_bytes

    def look_again(self) -> None:
        """Let the next view have what this process has just written."""
        with self._looking:
            self._writes += 1
            self._confirmed = -math.inf

    def refresh_snapshot(self) -> bool:
        """Write a snapshot where there is none, or much has changed since; returns whether it did.

        Where another process is writing one, it does not.
        """
        table = self._at(int(self._table.version))
        if not _MOST_ROWS_IN_MEMORY < table.count_rows() <= self._most_bytes // BYTES_A_ROW:
            return False
        addresses = _addresses_of(table)
        former = self._newest_snapshot(table, addresses)
        if former is not None:
            kept = int(are_among(former.addresses, addresses).sum())
            if len(former) + len(addresses) - 2 * kept <= _MOST_CHANGED_SHARE * len(addresses):
                return False
        return self._write(table, former)

    def close(self) -> None:
        """Give up what is being written, and let go of memory and files."""
        self._closing.set()
        for thread in (self._thread, self._looker):
            if thread is not None:
                thread.join()
        self._view = None

    def _newest_view(self) -> View | None:
        version = self._newest()
        view = self._view_at(version)
        if view is not None:
            return view
        if self._without == version:
            return None
        if self._is_large is None:
            self._is_large = self._table.count_rows() > _MOST_ROWS_FOLLOWED_AT_ONCE
        view = None if self._is_large else self._follow(version)
        if view is None:
            self._catch_up_later()
        return view

    def _confirmed_view(self) -> View | None:
        writes, started = self._writes, time.monotonic()
        view = self._newest_view()
        with self._looking:
            if view is not None and writes == self._writes:
                self._confirmed = started
        return view

    def _let_look(self) -> None:
        self._searched = time.monotonic()
        if self._looker is not None and self._looker.is_alive():
            return
        with self._looking:
            is_alive = self._looker is not None and self._looker.is_alive()
            if not is_alive and not self._closing.is_set():
                self._looker = threading.Thread(
                    target=self._keep_looking, name="looks at the index", daemon=True
                )
                self._looker.start()

    def _keep_looking(self) -> None:
        while not self._closing.wait(_SECONDS_BETWEEN_LOOKS):
            if time.monotonic() - self._searched > _SECONDS_UNTIL_IDLE:
                return
            # Searches look for themselves then, and raise what has to be told.
            with suppress(StoreError, *_ERRORS):
                self._confirmed_view()

    def _newest(self) -> int:
        """The newest version that there is."""
        with self._looking:
            now = time.monotonic()
            folders = self._files.state()
            if (
                not self._files.is_remote
                and folders == self._folders
                and now < self._believed_until
            ):
                return self._version
            self._check()
            version = int(self._table.version)
            versions, data = folders
            if folders != self._folders:
                self._folder_since = now
            if (
                # The folder was put in place of another, or put back to an earlier state: rows of
                # the same address may be others.
                versions[0] != self._folders[0][0]
                or version < self._version
                or (version == self._version and data != self._folders[1] and self._is_damaged())
            ):
                self._history += 1
                self._without, self._is_large = -1, None
            self._folders, self._version = folders, version
            settled = now - self._folder_since >= _SECONDS_OF_A_TICK
            self._believed_until = now + _SECONDS_BETWEEN_LOOKS if settled else -math.inf
            return version

    def _is_damaged(self) -> bool:
        """Whether rows of the view can no longer be read from the table."""
        view = self._view
        if view is None:
            return False
        parts = [view.recent.addresses]
        if view.snapshot is not None:
            parts.append(view.snapshot.addresses[view.alive])
        addresses = np.sort(np.concatenate(parts))
        # The last of each fragment, whose number is in the address.
        last = addresses[np.append(np.diff(addresses >> 32) > 0, [True] * (len(addresses) > 0))]
        try:
            query = self._table.take_row_ids(last.tolist()).select([*COLUMNS, "embedding"])
            return len(query.to_arrow()) != len(last)
        except _ERRORS:
            return True

    def _view_at(self, version: int) -> View | None:
        view = self._view
        there = view is not None and (view.history, view.version) == (self._history, version)
        return view if there else None

    def _at(self, version: int) -> Any:
        table = self._open_table()
        table.checkout(version)
        return table

    def _follow(self, version: int) -> View | None:
        """Make the view of a version, if there can be one now."""
        with self._making:
            view = self._view_at(version)
            if view is not None:
                return view
            former = self._view
            if former is not None and former.history != self._history:
                former = None
            try:
                view = self._view_of(version, former)
            except _ERRORS as exc:
                # The table is searched in its place, and raises what has to be told.
                _log.debug("no view of version %d: %s", version, exc)
                view = None
            if view is None:
                self._without = version
            else:
                self._view = view
            return view

    def _view_of(self, version: int, former: View | None) -> View | None:
        history = self._history
        table = self._at(version)
        addresses = _addresses_of(table)
        self._is_large = len(addresses) > _MOST_ROWS_FOLLOWED_AT_ONCE
        snapshot = former.snapshot if former is not None else None
        if snapshot is None or not _has_most(snapshot, addresses):
            snapshot = None
            if len(addresses) > _MOST_ROWS_IN_MEMORY:
                self._fits = len(addresses) * BYTES_A_ROW <= self._most_bytes
                if not self._fits:
                    return None
                snapshot = self._newest_snapshot(table, addresses)
                if snapshot is None or not _has_most(snapshot, addresses):
                    return None
        alive = np.zeros(0, np.bool_)
        missing = addresses
        if snapshot is not None:
            alive = are_among(snapshot.addresses, addresses)
            missing = addresses[~are_among(addresses, np.sort(snapshot.addresses))]
        recent = self._recent(table, missing, former)
        # With a copy of vectors in FAISS.
        needed = 2 * recent.table.nbytes + BYTES_A_ROW * len(alive)
        self._fits = needed <= self._most_bytes
        return View(history, version, table, snapshot, alive, recent) if self._fits else None

    def _recent(self, table: Any, addresses: Addresses, former: View | None) -> Recent:
        known: list[pa.Table] = []
        missing = addresses
        if former is not None:
            if np.array_equal(former.recent.addresses, addresses):
                return former.recent
            still = are_among(former.recent.addresses, addresses)
            known = [former.recent.table.filter(pa.array(still))]
            missing = addresses[~are_among(addresses, former.recent.addresses)]
        rows = table.take_row_ids(missing.tolist()).select([*COLUMNS, "embedding"])
        joined = pa.concat_tables([*known, rows.with_row_id().to_arrow()])
        recent = Recent.of(joined, self._metric)
        if not np.array_equal(recent.addresses, addresses):
            raise RuntimeError("the table does not have all of its rows")
        return recent

    def _newest_snapshot(self, table: Any, addresses: Addresses) -> Snapshot | None:
        """The newest one on disk that is whole, and of this table."""
        for version in versions_in(self._files.snapshots):
            view = self._view
            if (
                view is not None
                and view.history == self._history
                and view.snapshot is not None
                and view.snapshot.version == version
            ):
                return view.snapshot
            if version > table.version:
                continue
            try:
                snapshot = open_snapshot(self._files.snapshots, version, self._identity)
                self._compare(snapshot, table, addresses)
            except FileNotFoundError:  # another process has just replaced it
                continue
            except (DamagedSnapshotError, *_ERRORS) as exc:
                _log.info("a snapshot of the index cannot be used, and is made again: %s", exc)
                continue
            return snapshot
        return None

    def _compare(self, snapshot: Snapshot, table: Any, addresses: Addresses) -> None:
        """Raise DamagedSnapshotError where a fragment of the table is another of this number."""
        alive = are_among(snapshot.addresses, addresses)
        chosen = snapshot.one_of_each_fragment(alive)
        chosen = chosen[np.argsort(snapshot.addresses[chosen])]
        if len(chosen) == 0:
            return
        query = table.take_row_ids(snapshot.addresses[chosen].tolist())
        rows = query.select(["id", "embedding"]).with_row_id().to_arrow().sort_by("_rowid")
        ids = [snapshot.rows.read(int(position))[0] for position in chosen]
        if rows["id"].to_pylist() != ids or not np.array_equal(
            tables.embeddings_of(rows), snapshot.vectors[chosen]
        ):
            raise DamagedSnapshotError("it has other rows than the table")

    def _write(self, table: Any, former: Snapshot | None) -> bool:
        """Write a snapshot, if no other process does; returns whether it is there."""
        with if_unused(self._files.snapshots_lock) as alone:
            return alone and write_snapshot(
                table,
                self._files.snapshots,
                self._identity,
                self._metric,
                former,
                partial(sync_folder, self._files.snapshots.parent),
                lambda: not self._closing.is_set(),
            )

    def _catch_up_later(self) -> None:
        with self._looking:
            running = self._thread is not None and self._thread.is_alive()
            if not running and not self._closing.is_set():
                self._thread = threading.Thread(
                    target=self._catch_up, name="resident index", daemon=True
                )
                self._thread.start()

    def _catch_up(self) -> None:
        """Until there is a view of the newest version, or it is known that there can be none."""
        tried: tuple[int, list[int]] | None = None
        while not self._closing.is_set():
            version = self._version
            now = (version, versions_in(self._files.snapshots))
            if now != tried or time.monotonic() >= self._not_before:
                tried = now
                view = self._follow(version)
                if view is None and self._fits and time.monotonic() >= self._not_before:
                    self._write_in_background()
                    view = self._follow(self._version)
                if not self._fits or (view is not None and self._view_at(self._version) is view):
                    return
            self._closing.wait(_SECONDS_BETWEEN_TRIES)

    def _write_in_background(self) -> None:
        started = time.monotonic()
        written = False
        try:
            written = self.refresh_snapshot()
        except _ERRORS as exc:
            if str(exc) != self._told:
                _log.warning("no snapshot could be written, and searches are slower: %s", exc)
            self._told = str(exc)
        now = time.monotonic()
        pause = _PAUSE_PER_WRITING * (now - started)
        self._not_before = now + (pause if written else max(pause, _SECONDS_AFTER_FAILURE))


def _has_most(snapshot: Snapshot, addresses: Addresses) -> bool:
    """Whether what a snapshot lacks is few enough to be in memory."""
    kept = int(are_among(snapshot.addresses, addresses).sum())
    return len(addresses) - kept <= _MOST_ROWS_IN_MEMORY and 2 * kept >= len(snapshot)


def _addresses_of(table: Any) -> Addresses:
    """Those of all rows, in order."""
    query = table.search().with_row_id(with_row_id=True).select(["_rowid"]).limit(None)
    addresses = _addresses_in(query.to_arrow())
    addresses.sort()
    return addresses


def _addresses_in(rows: pa.Table) -> Addresses:
    return np.asarray(rows["_rowid"].to_numpy(), np.int64)
