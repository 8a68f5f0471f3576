"""One part of a source for each of several workers, which need to know nothing of each other."""

import os
import re
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

from image_search.errors import IndexNotFoundError, SettingsError, StoreError
from image_search.index import VectorIndex
from image_search.provenance import KnownSource
from image_search.settings import Settings
from image_search.stores import open_index
from worker.origin import prefix_of, registered_name, remember
from worker.sources import Source

# Who starts the workers numbers them: of these variables, the first has the number and the second
# the count. Slurm sets both: https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES
# Kubernetes sets the first, and a job's manifest the second:
# https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode
_VARIABLES: Final = (
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
)
# A new index is fitted to at most 10,000 images, which takes minutes on a few cores.
_MOST_SECONDS: Final = 3600.0
_SECONDS_BETWEEN_LOOKS: Final = 1.0


@dataclass(frozen=True)
class Shard:
    """The part `number`, from 0, of `count`; `told_by` says who chose it, if no option did."""

    number: int
    count: int
    told_by: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `--shard` takes; raises ValueError."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None:
            raise ValueError(f"{text!r} is not I/N, such as 0/4")
        number, count = map(int, found.groups())
        if number >= count:
            raise ValueError(f"{text} is no shard: they are 0/{count} to {count - 1}/{count}")
        return cls(number, count)

    @classmethod
    def of_environment(cls, environ: Mapping[str, str] = os.environ) -> Self | None:
        """What Slurm or Kubernetes has set; None where there is one worker.

        Raises SettingsError.
        """
        for number, count in _VARIABLES:
            if number in environ and count in environ:
                names = f"{number} and {count}"
                try:
                    shard = cls.parse(f"{environ[number]}/{environ[count]}")
                except ValueError as exc:
                    raise SettingsError(f"{names}: {exc}; or choose with --shard") from exc
                return cls(shard.number, shard.count, names) if shard.count > 1 else None
        return None

    @property
    def creates_index(self) -> bool:
        """Whether a new index is this shard's to create; the others wait for it."""
        return self.number == 0

    def wait_for_index(self, settings: Settings, stop: threading.Event) -> VectorIndex | None:
        """The index, once the first shard has created it; None when `stop` was set meanwhile.

        Raises StoreError if that takes more than an hour.
        """
        deadline = time.monotonic() + _MOST_SECONDS
        is_told = False
        while not stop.is_set():
            try:
                return open_index(settings)
            except IndexNotFoundError as exc:
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"shard 0 of {self.count} has not created the index within an hour: see "
                        "what it says, then run this shard again"
                    ) from exc
            if not is_told:
                print(f"waiting for shard 0 of {self.count}, which creates the index", flush=True)
                is_told = True
            stop.wait(_SECONDS_BETWEEN_LOOKS)
        return None

    @property
    def as_option(self) -> str:
        """What `parse` takes."""
        return f"{self.number}/{self.count}"

    def __str__(self) -> str:
        return f"shard {self.number} of {self.count}"


class Attempt:
    """One worker's work on its shard of a source, which the index knows of from begin to end.

    Whoever ends last finds all shards at their end, and does what is done once for all of them. Of
    two that end at the same time both may. `follows_a_kill` says whether an earlier attempt did not
    come to its end. Raises StoreError.
    """

    def __init__(self, index: VectorIndex, source: Source, shard: Shard) -> None:
        self._source = source
        self._shard = shard
        self._name = f"{registered_name(source)}/{shard.as_option}"  # no source has a slash
        known = _shards_of(index, source)
        self._before = known.get(self._name)
        # Others of as many shards may still be at work.
        self.follows_a_kill = any(
            one.ingested_at is None and (name == self._name or not self._has_peer(one))
            for name, one in known.items()
        )
        self._save(index, None, _new_change())

    def end(self, index: VectorIndex, *, has_written: bool) -> bool:
        """Tell the index that all of the shard is in it; returns whether all others are, too."""
        change = _new_change()
        before = self._before
        if not has_written and before is not None and before.ingested_at is not None:
            change = before.change
        self._save(index, datetime.now(UTC), change)
        known = _shards_of(index, self._source).values()
        ended = sum(self._has_peer(one) and one.ingested_at is not None for one in known)
        return ended == self._shard.count

    def _has_peer(self, known: KnownSource) -> bool:
        return Shard.parse(known.shard).count == self._shard.count

    def _save(self, index: VectorIndex, ingested_at: datetime | None, change: str) -> None:
        known = KnownSource(
            place=self._source.origin.place if self._source.origin else "",
            prefix=prefix_of(self._source),
            ingested_at=ingested_at,
            shard=self._shard.as_option,
            change=change,
        )
        index.save_source(self._name, known)


@dataclass(frozen=True)
class Changes:
    """What the shards of a source have changed, of which the index's confidences know a part."""

    all: frozenset[str]
    settled: frozenset[str]

    @classmethod
    def of(cls, index: VectorIndex, source: Source) -> Self:
        """Those that the index knows of; raises StoreError."""
        whole = index.load_sources().get(registered_name(source), KnownSource())
        found = frozenset(one.change for one in _shards_of(index, source).values())
        return cls(found, frozenset(whole.settled))

    @property
    def are_settled(self) -> bool:
        """Whether the confidences know all of them."""
        return self.all <= self.settled

    def settle(self, index: VectorIndex, source: Source) -> None:
        """Keep that they do now, and that all of the source is in the index."""
        remember(index, source, datetime.now(UTC), tuple(sorted(self.all)))


def follows_a_kill(index: VectorIndex, source: Source) -> bool:
    """Whether no ingest of the source has come to its end, or one of a shard of it has not."""
    whole = index.load_sources().get(registered_name(source))
    known = [*_shards_of(index, source).values(), *([whole] if whole else [])]
    return any(one.ingested_at is None for one in known)


def _shards_of(index: VectorIndex, source: Source) -> dict[str, KnownSource]:
    beginning = f"{registered_name(source)}/"
    return {
        name: one
        for name, one in index.load_sources().items()
        if one.shard and name.startswith(beginning)
    }


def _new_change() -> str:
    return secrets.token_hex(4)
