"""Brings images into an index."""

import argparse
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from image_search.embedding import Embedder
from image_search.errors import (
    IndexNotFoundError,
    IndexReplacedError,
    SettingsError,
    SourceError,
)
from image_search.index import VectorIndex
from image_search.program import or_make
from image_search.sample import ImageSample
from image_search.settings import Settings
from image_search.stores import open_index
from image_search.videos import Sampling
from worker.auto import refuse_mixture, source_to_ingest
from worker.cluster import Cluster, Job, Share
from worker.commands.options import (
    EXIT_UNREADABLE,
    Commands,
    add_batch_size,
    add_index_options,
    add_source_options,
    open_chosen,
    percent,
    positive,
    rate,
    shard,
    tell,
)
from worker.confidence import recalibrate, save_sample
from worker.ingest import Summary, ingest
from worker.model import NewIndex, create_index_for, load_embedder
from worker.origin import named_in, remember
from worker.prune import SeenSource, check_prune, prune
from worker.recipes import fitted_positions
from worker.shards import Attempt, Changes, Shard, follows_a_kill
from worker.signals import StopSignals
from worker.sources import Source
from worker.watch import changed_part, changes, check_watch

EXIT_CODES: Final = """\
exit codes:
  0    every image of the source is in the index
  1    stopped by an error (disk, store, weights, download); run it again to resume
  2    wrong usage, bad setting, or a source that does not exist or has no images
  3    finished, but some images could not be read or were left out; standard error
       says which, why, and what to do
  130  stopped by SIGINT (Ctrl-C), 143 by SIGTERM, after the current batch; run it
       again to resume

Settings are environment variables, IMAGE_SEARCH_*; docs/reference/settings.md lists them.
"""

_MOST_PRUNED_PERCENT: Final = 25

_log = logging.getLogger(__name__)

T = TypeVar("T")


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "ingest",
        help="add images to the index",
        description="Add the images of a source to the index. Run it again at any time: it\n"
        "resumes where it stopped, and embeds only what is new or has changed.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        nargs="?",
        default="auto",
        metavar="SOURCE",
        help="a folder, zip or tar of images and videos, flat or with one sub-folder per label; an "
        "image or video, a table, a list, parquet files, WebDataset; a bucket (s3://, gs://) or an "
        "https:// address; cifar10 (downloaded), sample (drawn); auto, the default, is cifar10 "
        "where it is available and sample otherwise; docs/reference/sources.md lists all",
    )
    add_source_options(
        parser, "default: train of CIFAR-10 and the sample, all of a folder or archive"
    )
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="only N images and videos, drawn at random, the same in every run",
    )
    parser.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="only part I, from 0, of N: N workers on any machines, with the source at the same "
        "path or address, ingest all of it (default: what Slurm or a Kubernetes job sets)",
    )
    parser.add_argument(
        "--on",
        choices=("ray",),
        help="ingest on a cluster of Ray: the one that RAY_ADDRESS names, or that this machine "
        "belongs to; or one that is started here",
    )
    parser.add_argument(
        "--actors",
        type=positive,
        metavar="N",
        help="with --on, how many processes embed (default: one for each GPU, or for each node)",
    )
    parser.add_argument(
        "--gpus-per-actor",
        type=float,
        metavar="N",
        help="with --on, how much of a GPU each has, such as 0.5 (default: 1 if there are any)",
    )
    parser.add_argument(
        "--prune",
        type=percent,
        nargs="?",
        const=_MOST_PRUNED_PERCENT,
        metavar="PERCENT",
        help="afterwards remove from the index what the source no longer has, unless that is more "
        "than PERCENT of the images that the index has of it (default: 25)",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="keep running and follow a folder: ingest what changes in it, and remove what it no "
        "longer has, as with --prune; until Ctrl-C or SIGTERM",
    )
    parser.add_argument(
        "--metric",
        choices=("cosine", "euclidean", "dotproduct"),
        help="metric of a new index (default: cosine)",
    )
    parser.add_argument(
        "--restore",
        action="store_true",
        help="bring back images that were deleted over HTTP, which otherwise stay out of the index",
    )
    parser.add_argument(
        "--frames-per-second",
        type=rate,
        default=1.0,
        metavar="N",
        help="take at most N frames per second of a video, without those that hardly differ from "
        "the one before (default: 1)",
    )
    parser.add_argument(
        "--key-frames",
        action="store_true",
        help="take only key frames of a video, at most as many per second: several times as fast, "
        "but some videos have only one in ten seconds",
    )
    parser.add_argument(
        "--max-frames",
        type=positive,
        metavar="N",
        help="take at most N frames of a video, spread evenly over it (default: no limit)",
    )
    add_batch_size(parser)
    add_index_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Ingest; returns the exit code."""
    stop = StopSignals()
    part = arguments.shard or (None if arguments.on else Shard.of_environment())
    following: Iterator[set[str] | None] = iter(())
    if arguments.watch:
        if arguments.prune is None:
            arguments.prune = _MOST_PRUNED_PERCENT
        # From now on, so that nothing is missed that changes during the first ingest.
        following = changes(check_watch(arguments.source), settings.local_dir.resolve(), stop.event)
        next(following, None)
    with ExitStack() as opened:
        cluster = None
        if arguments.on:
            _check_cluster(arguments)
            share = Share(arguments.actors, arguments.gpus_per_actor)
            open_source, _ = _opened_elsewhere(arguments, settings)
            cluster = opened.enter_context(Cluster(share, open_source))
        try:
            index: VectorIndex | None = opened.enter_context(open_index(settings))
        except IndexNotFoundError:
            index = None
        if index is None and part is not None and not part.creates_index:
            index = part.wait_for_index(settings, stop.event)
            if index is None:
                return stop.exit_code
            opened.enter_context(index)
        if arguments.source == "auto":
            chosen = source_to_ingest(index, arguments.split, settings)
            if chosen is None:
                count = index.count() if index is not None else 0
                print(f"index {settings.index} holds {count:,} images: nothing to ingest")
                return 0
            source = chosen
        else:
            source = open_chosen(arguments, settings, held_out=False)
        if index is not None:
            refuse_mixture(index, source, settings)
            source = _named_in(index, source)
        if arguments.prune is not None:
            if arguments.limit or arguments.split or part is not None:
                option = "--watch" if arguments.watch else "--prune"
                raise SettingsError(
                    f"{option} needs the whole source: leave out --limit, --split and --shard"
                    + (f", and unset {part.told_by}" if part is not None and part.told_by else "")
                )
            check_prune(source)
        whole = source.limited(arguments.limit)
        tell(whole)
        source = whole.shard(part.number, part.count) if part is not None else whole
        if part is not None:
            by = f", as {part.told_by} say" if part.told_by else ""
            print(f"{part}{by}: {source.total:,} of these", flush=True)
        created: NewIndex | None = None
        if index is None:
            created = create_index_for(whole, settings, stop.event)
            if created is None:
                return stop.exit_code
            embedder = created.embedder
            index = opened.enter_context(created.index)
            built = index.manifest
            print(
                f"new index {settings.index}: input size {built.model.input_size} "
                f"({built.input_size_reason}), recipe {built.model.recipe}",
                flush=True,
            )
        elif cluster is None:
            embedder = load_embedder(index, settings)
        mend = follows_a_kill(index, source)
        remember(index, source)
        attempt = None
        if part is not None:
            attempt = Attempt(index, source, part)
            mend = attempt.follows_a_kill
        started = time.monotonic()
        summary = Summary()
        fitted: Sequence[int] = ()
        if created is not None and (part is not None or cluster is not None):
            # They are embedded already, whoever else would have it to do.
            fitted = created.fitted
        elif mend and part is not None and part.creates_index:
            # A former attempt may have added them, and was killed before it kept their sample.
            fitted = fitted_positions(whole.total)
        if fitted:
            summary = ingest(
                _of_others(fitted, whole, part),
                index,
                embedder,
                settings,
                sampling=_sampling(arguments),
                stop=stop.event,
                is_new=created is not None,
                mend=mend,
            )
        if cluster is not None:
            job = Job(
                source.origin.name if source.origin is not None else "",
                arguments.limit,
                _opened_elsewhere(arguments, settings)[1],
                _sampling(arguments),
                arguments.restore,
                mend,
            )
            summary.add(cluster.ingest(job, source.total, stop.event))
            if not summary.interrupted:
                remember(index, source, datetime.now(UTC))
        else:
            embedder.warm_up()
            target = _Target(index, embedder, settings, opened)
            is_new = None
            if part is not None:
                # Whoever creates an index puts what is others' into it, while they are at work.
                is_new = created is not None and bool(created.fitted)
            done, _ = _bring_in(
                source,
                source,
                target,
                arguments,
                stop,
                restore=arguments.restore,
                is_new=is_new,
                mend=mend,
                is_whole=part is None,
            )
            summary.add(done)
            index = target.index
        is_last = True
        if attempt is not None:
            if summary.has_written:
                save_sample(index, summary.sample)
            is_last = not summary.interrupted and attempt.end(
                index, has_written=summary.has_written
            )
        if is_last:
            _finish(index, source, summary, stop, is_shard=attempt is not None)
        _report(source, summary, index, settings, time.monotonic() - started)
        if not is_last and not summary.interrupted:
            print(f"{part} is finished: the last of them to finish fits confidences")
        if arguments.watch and not stop.exit_code:
            print(f"following {source.name}: press Ctrl-C to stop", flush=True)
        for changed in following:
            if changed is None or changed:
                source = _bring_in_changes(source, changed, target, arguments, stop)
            else:  # an index that was replaced is not held for long: its files go then
                target.do(lambda: None)
        is_whole = not summary.unreadable and not summary.damaged and not source.skipped.lost
        return stop.exit_code or (0 if is_whole else EXIT_UNREADABLE)


def _of_others(fitted: Sequence[int], whole: Source, part: Shard | None) -> Source:
    """What the model was fitted to, but for the own part of it, and videos: of them, one frame."""
    own = set() if part is None else set(whole.deal(part.count)[part.number])
    return whole.at(sorted(n for n in fitted if n not in own and n not in whole.videos))


def _finish(
    index: VectorIndex, source: Source, summary: Summary, stop: StopSignals, *, is_shard: bool
) -> None:
    """What is done once all is in the index; also what a shard that was killed has left."""
    changes = Changes.of(index, source)
    index.flush()
    has_changed = not changes.are_settled or (summary.has_written and not is_shard)
    if has_changed or index.calibration is None:
        recalibrate(index, summary.sample, stop.event)
    if not stop.event.is_set() and (is_shard or not changes.are_settled):
        changes.settle(index, source)


class _Target:
    """The index that is ingested into, and its model; `opened` closes it."""

    def __init__(
        self, index: VectorIndex, embedder: Embedder, settings: Settings, opened: ExitStack
    ) -> None:
        self.index = index
        self.embedder = embedder
        self.settings = settings
        self._opened = opened

    def do(self, work: Callable[[], T]) -> T:
        """What `work` returns; it is done again with an index that took the place of this one."""
        while True:
            try:
                self.index.check_in_use()
                return work()
            except IndexReplacedError:
                _log.warning("the index was replaced, as refit does: continuing with the new one")
                self._opened.close()
                self.index = self._opened.enter_context(open_index(self.settings))
                self.embedder = load_embedder(self.index, self.settings)
                self.embedder.warm_up()


def _bring_in(
    part: Source,
    source: Source,
    target: _Target,
    arguments: argparse.Namespace,
    stop: StopSignals,
    *,
    restore: bool = False,
    is_new: bool | None = None,
    mend: bool = False,
    is_whole: bool = True,
) -> tuple[Summary, int]:
    """Ingest a part of the source or all of it, and prune; returns how many were taken out, too.

    Once that is done, the source as a whole is ingested, unless `is_whole` is false.
    """
    index = target.index

    def keep(sample: ImageSample) -> None:
        # Of a small ingest, so that none of it is embedded again after a kill. The sample of a
        # large one is saved at its end, as each time takes a while.
        if sample.is_all:
            target.index.update_sample(
                lambda stored: stored.joined(sample.ids, sample.textures, sample.bound)
            )

    def work() -> tuple[Summary, int]:
        # Another index may lack more than the part.
        seen = SeenSource(part if target.index is index else source)
        seen.see_all()
        summary = ingest(
            seen.source,
            target.index,
            target.embedder,
            target.settings,
            sampling=_sampling(arguments),
            stop=stop.event,
            restore=restore,
            is_new=is_new if target.index is index else None,
            mend=mend,
            before_commit=keep,
        )
        if summary.interrupted:
            return summary, 0
        most = arguments.prune
        pruned = 0 if most is None else prune(target.index, seen, most)
        if is_whole:
            remember(target.index, source, datetime.now(UTC))
        return summary, pruned

    return target.do(work)


def _sampling(arguments: argparse.Namespace) -> Sampling:
    return Sampling(arguments.frames_per_second, arguments.key_frames, arguments.max_frames)


def _check_cluster(arguments: argparse.Namespace) -> None:
    if arguments.shard or arguments.watch or arguments.prune is not None:
        raise SettingsError("--on cannot be combined with --shard, --watch or --prune")
    if arguments.source == "auto":
        raise SettingsError("--on needs to be told the SOURCE, as others open it, too")


def _opened_elsewhere(
    arguments: argparse.Namespace, settings: Settings
) -> tuple[Callable[[], Source], Settings]:
    """What opens the source, and the settings, for processes that start in other folders."""
    if os.path.exists(arguments.source):
        absolute = {"source": os.path.abspath(arguments.source)}
        arguments = argparse.Namespace(**{**vars(arguments), **absolute})
    if isinstance(settings.data_dir, Path):
        settings = settings.model_copy(update={"data_dir": settings.data_dir.resolve()})
    return partial(open_chosen, arguments, settings, held_out=False), settings


def _bring_in_changes(
    before: Source,
    changed: set[str] | None,
    target: _Target,
    arguments: argparse.Namespace,
    stop: StopSignals,
) -> Source:
    """Bring in what has changed in a folder, or all of it; returns the folder as it is."""
    try:
        source = open_chosen(arguments, target.settings, held_out=False)
        if source.origin is not None and before.origin is not None:
            source = source.origin.named(before.origin.name)
        part = source if changed is None else changed_part(source, before, changed)
        summary, pruned = _bring_in(part, source, target, arguments, stop)
    except SourceError as exc:
        _log.warning("the index is not changed: %s", exc.in_full)
        return before
    index = target.index
    if summary.has_written or pruned:
        index.flush()
        save_sample(index, summary.sample)
        print(
            f"{datetime.now():%H:%M:%S} {source.name}: {summary.embedded:,} images embedded, "
            f"{summary.moved:,} moved, {summary.relabelled:,} got another label or other metadata, "
            f"{pruned:,} removed; {index.count():,} images in the index",
            flush=True,
        )
    return source


def _named_in(index: VectorIndex, source: Source) -> Source:
    named = named_in(index, source)
    if source.origin is not None and named.origin is not None and named.origin != source.origin:
        print(
            f"the index has another source called {source.origin.name}: ids of this one begin with "
            f"{named.origin.name}/"
        )
    return named


def _report(
    source: Source, summary: Summary, index: VectorIndex, settings: Settings, seconds: float
) -> None:
    state = "stopped" if summary.interrupted else "finished"
    print(
        f"{state} {source.name}: {summary.embedded:,} images embedded, {summary.unchanged:,} "
        f"unchanged, {len(summary.unreadable):,} unreadable, {source.skipped.total:,} other files "
        f"left out, in {seconds:.1f} s ({summary.embedded / seconds:,.0f} images/s)\n"
        f"index {settings.index}, namespace {settings.namespace}, {index.manifest.metric}, "
        f"{index.manifest.model}: {index.count():,} images"
    )
    if summary.videos:
        print(f"{summary.frames:,} of the images are new frames, {summary.videos:,} videos read")
    if summary.damaged:
        print(f"{len(summary.damaged):,} videos could only be read in part: see above")
    if summary.relabelled:
        print(f"{summary.relabelled:,} images have a new label or new metadata")
    if summary.moved:
        print(f"{summary.moved:,} images were in the index under another name: not embedded again")
    if summary.deleted:
        print(
            f"{summary.deleted:,} images were deleted over HTTP and stay out of the index: "
            "--restore brings them back"
        )
    if source.name == "sample":
        print(
            "these are drawn pictures, to try things out; give your own an index of their own: "
            "--index photos"
            + or_make(", or make run SOURCE=path/to/folder IMAGE_SEARCH_INDEX=photos")
        )
    if index.retries:
        print(f"{index.retries:,} requests to the store had to be retried")
