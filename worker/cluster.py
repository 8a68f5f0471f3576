"""An ingest by many processes on a cluster of Ray: https://docs.ray.io

    this process --(numbers of parts)--> actors, each with a model --(counts)--> this process

Images never pass through Ray: each actor opens the source and the index itself, and ingests the
parts that it is given as `ingest` does. So a part that is lost with its actor or node is given out
again, and costs what was not committed of it.
"""

import logging
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from image_search.errors import ImageSearchError, SettingsError, StoreError
from image_search.program import install
from image_search.progress import Progress
from image_search.settings import Settings
from image_search.stores import open_index
from image_search.videos import Sampling
from worker.ingest import RECORDS_PER_COMMIT, Summary, ingest
from worker.model import load_embedder
from worker.sources import Source
from worker.sources.names import readable

# Of what an actor does: after a while it is told to others that it does not begin.
_SECONDS_TO_BEGIN: Final = 60.0
_SECONDS_TO_CONNECT: Final = 10.0
_SECONDS_BETWEEN_LOOKS: Final = 0.5
_TRIES: Final = 3
_PARTS_PER_ACTOR: Final = 8
_MOST_IN_PART: Final = 8 * RECORDS_PER_COMMIT
# Actors that are started in place of lost ones, for each that there was.
_REPLACED: Final = 10


@dataclass(frozen=True)
class Job:
    """What every actor is told: how the index knows the source, and how to ingest it."""

    name: str
    limit: int | None
    settings: Settings
    sampling: Sampling
    restore: bool
    # After a run that was killed.
    mend: bool


@dataclass(frozen=True)
class Share:
    """How much of the cluster is used; None for all of it.

    An actor on a CPU uses all cores of its node, so there is one for each node; with GPUs there is
    one for each.
    """

    actors: int | None = None
    gpus_per_actor: float | None = None


@dataclass(frozen=True)
class _Failed:
    """In place of an error, as Ray would add its own text to it."""

    message: str


class _Actor:
    """Runs on a node of the cluster."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._is_open = threading.Event()
        self._opened: Source | _Failed | None = None

    def begin(self) -> None:
        """Answers once the actor has a place on a node."""

    def open(self, open_source: Callable[[], Source]) -> None:
        """List what the source has, while the model is still being fitted elsewhere."""
        try:
            self._opened = open_source()
        except ImageSearchError as exc:
            self._opened = _Failed(exc.in_full)
        finally:
            self._is_open.set()

    def prepare(self, job: Job) -> _Failed | None:
        """Open the index, and load the model."""
        self._job = job
        try:
            self._index = open_index(job.settings)
            self._embedder = load_embedder(self._index, job.settings)
            self._embedder.warm_up()
        except ImageSearchError as exc:
            return _Failed(exc.in_full)
        self._is_open.wait()
        source = self._opened
        if not isinstance(source, Source):
            return source
        if source.origin is not None:
            source = source.origin.named(job.name)
        self._source = source.limited(job.limit)
        self._dealt: Sequence[Sequence[int]] = ()
        return None

    def ingest(self, number: int, parts: int, *, again: bool) -> Summary | _Failed:
        """Bring in one part of the source; `again`, if an actor was lost with it."""
        if not self._dealt:
            self._dealt = self._source.deal(parts)
        try:
            return ingest(
                self._source.at(self._dealt[number]),
                self._index,
                self._embedder,
                self._job.settings,
                sampling=self._job.sampling,
                stop=self._stop,
                restore=self._job.restore,
                is_new=False,
                mend=again or self._job.mend,
            )
        except ImageSearchError as exc:
            return _Failed(exc.in_full)

    def stop(self) -> None:
        """End the part that is being brought in after the current batch; comes in meanwhile."""
        self._stop.set()


@dataclass
class _Run:
    """Parts that are still to be given out, and who works on which."""

    ray: Any
    # Makes an actor.
    kind: Any
    open_source: Callable[[], Source]
    parts: int = 0
    left: deque[int] = field(default_factory=deque)
    summary: Summary = field(default_factory=Summary)
    # What is waited for: who does it, and which part it is, if it is one.
    awaited: dict[Any, tuple[Any, str, int]] = field(default_factory=dict)
    tries: Counter[int] = field(default_factory=Counter)


class Cluster:
    """A cluster that this process is connected to, until the end of the `with` statement.

    It is the one that RAY_ADDRESS names, or that this machine belongs to; or one is started here.
    Raises SettingsError where it cannot be reached, or gives nothing to work with. It is connected
    to before an index is opened, as a cluster that is started here is forked. Its actors begin to
    open the source at once.
    """

    def __init__(self, share: Share, open_source: Callable[[], Source]) -> None:
        self._ray = _connected()
        try:
            self._actors, options = _placed(self._ray, share)
            self._run = _Run(self._ray, self._ray.remote(**options)(_Actor), open_source)
            _start(self._run, self._actors)
        except BaseException:
            self._ray.shutdown()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def ingest(self, job: Job, total: int, stop: threading.Event) -> Summary:
        """Bring the images of a source of `total` items into an index that there is.

        Raises StoreError where the cluster loses a part again and again, or an actor ends with an
        error, and SettingsError where no actor gets a place.
        """
        run, actors = self._run, self._actors
        # Enough parts for actors to end at about the same time, and no more, as an actor is idle
        # between two. What is lost with an actor is less, as it commits meanwhile.
        smallest = -(-total // RECORDS_PER_COMMIT)
        run.parts = max(min(smallest, _PARTS_PER_ACTOR * actors), -(-total // _MOST_IN_PART))
        run.left.extend(range(run.parts))
        with Progress(f"ingesting on {actors} actors", total, "images") as progress:
            _work(run, job, _REPLACED * actors, progress, stop)
        return run.summary


def _connected() -> Any:
    # Nothing is reported to its makers unless the user has asked for it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as exc:
        raise SettingsError(f"--on ray needs Ray: {install('ray')}") from exc
    address = os.environ.get("RAY_ADDRESS", "")
    _require_reachable(address)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        try:
            ray.init("auto", **options)
        except ConnectionError:
            if address:
                raise
            ray.init(include_dashboard=False, **options)
    except (ConnectionError, ValueError, RuntimeError) as exc:
        first = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise SettingsError(f"the cluster cannot be reached: {first}") from exc
    return ray


def _require_reachable(address: str) -> None:
    """Raise SettingsError for HOST:PORT where nothing listens; Ray would try for minutes."""
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT).close()
    except OSError as exc:
        raise SettingsError(
            f"the cluster at {address} cannot be reached: {exc}: see RAY_ADDRESS"
        ) from exc


def _placed(ray: Any, share: Share) -> tuple[int, dict[str, Any]]:
    """How many actors there are, and what each asks the cluster for."""
    there, free = ray.cluster_resources(), ray.available_resources()
    gpus = there.get("GPU", 0.0)
    per_actor = share.gpus_per_actor if share.gpus_per_actor is not None else float(gpus > 0)
    if per_actor > gpus:
        raise SettingsError(
            f"the cluster has {gpus:g} GPUs, and an actor needs {per_actor:g}: "
            "choose less with --gpus-per-actor, or 0 for CPUs"
        )
    nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    actors = share.actors or (int(gpus / per_actor) if per_actor else nodes)
    for name, needed in (("CPU", 1.0), ("GPU", per_actor)):
        if free.get(name, 0.0) < needed:
            raise SettingsError(
                f"the cluster has {free.get(name, 0.0):g} of its {there.get(name, 0.0):g} {name}s "
                f"free, and an actor needs {needed:g}: wait for other jobs, or add nodes"
            )
    options = {
        "num_cpus": 1,
        "num_gpus": per_actor,
        "scheduling_strategy": "SPREAD",
        # One call works while another one stops it. Lost actors are replaced here, as Ray would
        # wait without end for a node that can take them.
        "max_concurrency": 2,
        "max_restarts": 0,
    }
    return max(1, actors), options


def _start(run: _Run, count: int) -> None:
    for _ in range(count):
        actor = run.kind.remote()
        run.awaited[actor.begin.remote()] = (actor, "begin", -1)
        actor.open.remote(run.open_source)


def _work(
    run: _Run,
    job: Job,
    replacements: int,
    progress: Progress,
    stop: threading.Event,
) -> None:
    began = time.monotonic()
    has_begun = is_stopping = False
    while run.awaited and (run.left or any(part >= 0 for _, _, part in run.awaited.values())):
        if stop.is_set() and not is_stopping:
            is_stopping = True
            run.left.clear()
            run.summary.interrupted = True
            for actor, _, _ in run.awaited.values():
                actor.stop.remote()
        done, _ = run.ray.wait(list(run.awaited), timeout=_SECONDS_BETWEEN_LOOKS)
        if not has_begun and not done and time.monotonic() - began > _SECONDS_TO_BEGIN:
            raise SettingsError(
                f"no actor got a place on the cluster within {_SECONDS_TO_BEGIN:.0f} s: "
                "see `ray status` for what its nodes have free"
            )
        for ref in done:
            actor, step, part = run.awaited.pop(ref)
            try:
                result = run.ray.get(ref)
            except run.ray.exceptions.RayActorError as exc:
                if is_stopping:
                    continue
                progress.message("an actor was lost: what it had not committed is done again")
                _give_back(run, part, exc)
                if replacements:
                    replacements -= 1
                    _start(run, 1)
                continue
            if isinstance(result, _Failed):
                raise StoreError(result.message)
            has_begun = True
            if isinstance(result, Summary):
                _add(run.summary, result, progress)
            if step == "begin":
                run.awaited[actor.prepare.remote(job)] = (actor, "prepare", -1)
            elif run.left:
                part = run.left.popleft()
                call = actor.ingest.remote(part, run.parts, again=run.tries[part] > 0)
                run.awaited[call] = (actor, "ingest", part)
    if run.left:
        raise StoreError("all actors were lost: run it again to continue where it stopped")


def _give_back(run: _Run, part: int, reason: Exception) -> None:
    if part < 0:
        return
    run.tries[part] += 1
    if run.tries[part] == _TRIES:
        first = (str(reason).splitlines() or [""])[0]
        raise StoreError(
            f"part {part} of {run.parts} was lost {_TRIES} times with its actor: {first}. "
            f"To see why: ingest with --shard {part}/{run.parts} on one machine"
        ) from reason
    run.left.appendleft(part)


def _add(summary: Summary, part: Summary, progress: Progress) -> None:
    for id_, reason in {**part.unreadable, **part.damaged}.items():
        progress.message(f"skipped {readable(id_)}: {reason}")
    summary.add(part)
    # A video counts once, however many frames it has.
    progress.update(
        part.embedded
        + part.unchanged
        + part.relabelled
        + part.moved
        + part.deleted
        + len(part.unreadable)
        - part.frames
    )
