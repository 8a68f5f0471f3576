"""The worker's command line."""

import argparse
import io
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from image_search.duplicates import NEAR_DUPLICATE_COSINE
from image_search.embedding import Embedder
from image_search.errors import ImageSearchError, IndexNotFoundError, SettingsError, SourceError
from image_search.index import VectorIndex
from image_search.settings import Settings, load_settings
from image_search.stores import open_index, succession
from worker.auto import refuse_mixture, source_to_ingest, source_to_search_for
from worker.confidence import recalibrate, save_sample
from worker.copying import copy, parse_end
from worker.doctor import as_line, examine
from worker.duplicates import find_duplicates, json_lines, summary, text_lines
from worker.ingest import Summary, ingest
from worker.listing import as_json, as_text, list_sources
from worker.model import create_index_for, load_embedder
from worker.origin import named_in, remember
from worker.prune import SeenSource, check_prune, prune
from worker.signals import StopSignals
from worker.sources import LABEL_FROM, SPLITS, Source, open_source
from worker.watch import changed_part, changes, check_watch

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREADABLE: Final = 3

_MOST_PRUNED_PERCENT: Final = 25

_log = logging.getLogger(__name__)

_EXIT_CODES: Final = """\
exit codes:
  0    every image of the source is in the index
  1    stopped by an error (disk, store, weights, download); start again to go on
  2    wrong usage, bad setting, or a source that does not exist or holds no images
  3    finished, but some images could not be read, or were left out; standard error
       says which, why, and what to do
  130  stopped by SIGINT (Ctrl-C), 143 by SIGTERM: the batch in flight was finished;
       start again to go on

Settings are environment variables, IMAGE_SEARCH_*; docs/settings.md lists them.
"""


_COPY_EXIT_CODES: Final = """\
exit codes:
  0    TO has the same records as FROM
  1    stopped by an error (no index, store, another model, other images in TO)
  2    wrong usage or bad setting
  130  stopped by SIGINT (Ctrl-C), 143 by SIGTERM: run it again to go on
"""


_EVALUATE_EXIT_CODES: Final = """\
exit codes:
  0    the report is written
  1    stopped by an error (no index, store, weights, download)
  2    wrong usage, bad setting, or a source that does not exist or holds no images
  3    the report is written, but some images could not be read; it lists them
  130  stopped by SIGINT (Ctrl-C)
"""


_DUPLICATES_EXIT_CODES: Final = """\
exit codes:
  0    the groups are listed, if there are any
  1    stopped by an error (no index, store)
  2    wrong usage, bad setting, or a page that cannot be written
  130  stopped by SIGINT (Ctrl-C)
"""
_DOCTOR_EXIT_CODES: Final = """\
exit codes:
  0    all is well
  1    a check failed; its line says what to do
  2    wrong usage or bad setting
  130  stopped by SIGINT (Ctrl-C)
"""
_GROUPS_SHOWN: Final = 100

_REFIT_EXIT_CODES: Final = """\
exit codes:
  0    the index is fitted again
  1    stopped by an error (disk, store, weights); start again to go on
  2    wrong usage, bad setting, a source that does not exist, or images of the index
       that no source has
  130  stopped by SIGINT (Ctrl-C), 143 by SIGTERM; start again to go on
"""
# A service takes up the new index within a second, and then loads its model.
_SECONDS_FOR_READERS: Final = 60.0


def main() -> int:
    """Parse the command line and run; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name must not end what a terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    arguments = _parser().parse_args()
    overrides = {
        name: value
        for name in ("batch_size", "metric", "index", "namespace")
        if (value := getattr(arguments, name, None)) is not None
    }
    try:
        settings = load_settings(**overrides)
        if arguments.command == "evaluate":
            return _evaluate(arguments, settings)
        if arguments.command == "copy":
            return _copy(arguments)
        if arguments.command == "sources":
            return _sources(arguments, settings)
        if arguments.command == "refit":
            return _refit(arguments, settings)
        if arguments.command == "duplicates":
            return _duplicates(arguments, settings)
        if arguments.command == "doctor":
            return _doctor(settings)
        return _ingest(arguments, settings)
    except (SettingsError, SourceError) as exc:
        return _fail(exc.in_full, EXIT_USAGE)
    except ImageSearchError as exc:
        return _fail(exc.in_full, EXIT_FAILED)
    except BrokenPipeError:
        # Who reads has seen enough, as `head` has; nothing is left to be written at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return _fail("stopped", 128 + signal.SIGINT)
    except Exception as exc:  # a defect: say where it is, without a traceback
        trace = exc.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
        return _fail(f"unexpected, please report it: {exc!r} at {where}", EXIT_FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m worker",
        description="Embed images with VGG16 and upsert them into the vector index.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    ingest_parser = commands.add_parser(
        "ingest",
        help="bring images into the index",
        description="Bring images into the index. Run it again at any time: it goes on where it\n"
        "stopped, and embeds only what is new or has changed.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ingest_parser.add_argument(
        "source",
        nargs="?",
        default="auto",
        metavar="SOURCE",
        help="a folder, zip or tar of images, flat or with one sub-folder a label; an image, a "
        "table, a list, parquet files, WebDataset; a bucket (s3://, gs://) or an https:// address; "
        "cifar10 (downloaded), sample (drawn); auto, the default, is cifar10 where it is available "
        "and sample otherwise; docs/sources.md lists all",
    )
    _add_source_options(
        ingest_parser, "default: train of CIFAR-10 and the sample, all of a folder or archive"
    )
    ingest_parser.add_argument(
        "--limit",
        type=_positive,
        metavar="N",
        help="only N images, drawn at random, the same in every run",
    )
    ingest_parser.add_argument(
        "--prune",
        type=_percent,
        nargs="?",
        const=_MOST_PRUNED_PERCENT,
        metavar="PERCENT",
        help="afterwards take out of the index what the source no longer has, unless that is more "
        "than so many of the images that the index has of it (default: 25)",
    )
    ingest_parser.add_argument(
        "--watch",
        action="store_true",
        help="go on and follow a folder: what changes in it is ingested, and what it no longer "
        "has is taken out, as with --prune; ends at Ctrl-C or SIGTERM",
    )
    ingest_parser.add_argument(
        "--metric",
        choices=("cosine", "euclidean", "dotproduct"),
        help="metric of a new index (default: cosine)",
    )
    ingest_parser.add_argument(
        "--restore",
        action="store_true",
        help="bring back what was deleted over HTTP, which stays out of the index otherwise",
    )
    _add_batch_size(ingest_parser)
    _add_index_options(ingest_parser)
    evaluate_parser = commands.add_parser(
        "evaluate",
        help="measure how good the search is",
        description="Search for images whose labels are known, best such as are not in the index,\n"
        "and write a report: report.html, and all its figures in figures.json.",
        epilog=_EVALUATE_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate_parser.add_argument(
        "source",
        nargs="?",
        default="auto",
        metavar="SOURCE",
        help="the query images: cifar10 (downloaded), sample (drawn), a folder, zip or tar of "
        "images with one sub-folder a label, or CIFAR-10's binary archive; auto, the default, is "
        "cifar10 or sample, whichever the index holds; without labels there are fewer figures",
    )
    _add_source_options(evaluate_parser, "default: test, where the source has it")
    evaluate_parser.add_argument(
        "--queries",
        type=_positive,
        default=10_000,
        metavar="N",
        help="at most so many images of the source, drawn at random (default: 10,000)",
    )
    evaluate_parser.add_argument(
        "--seed",
        type=_natural,
        default=0,
        metavar="N",
        help="what is random follows from it (default: 0)",
    )
    evaluate_parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where the report goes (default: evaluation, in the data folder)",
    )
    _add_batch_size(evaluate_parser)
    _add_index_options(evaluate_parser)
    copy_parser = commands.add_parser(
        "copy",
        help="copy an index to another, or to a file and back",
        description="Copy an index with all that belongs to it, without embedding again. Run it\n"
        "again at any time: it goes on where it stopped. In the end both sides are compared.\n\n"
        "FROM and TO are [STORE:]INDEX[/NAMESPACE], or the path of a parquet file:\n"
        "  images             the index images, in the store that is set\n"
        "  images/2024        its namespace 2024\n"
        "  pinecone:images    the index images at Pinecone; embedded:images in the data folder\n"
        "  backup.parquet     a file",
        epilog=_COPY_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    copy_parser.add_argument("source", metavar="FROM", help="the index or file to copy")
    copy_parser.add_argument(
        "target", metavar="TO", help="the index or file to make; a file is replaced"
    )
    sources_parser = commands.add_parser(
        "sources",
        help="list where the images of the index came from",
        description="List the sources that were ingested: how many images the index has of each,\n"
        "when its last ingest ran to its end, and where it is. Images that were put over HTTP are\n"
        "counted under (others).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sources_parser.add_argument("--json", action="store_true", help="print a list of objects")
    _add_index_options(sources_parser)
    _add_refit(commands)
    _add_duplicates(commands)
    doctor_parser = commands.add_parser(
        "doctor",
        help="check this machine and the store",
        description="Check settings, clock, disk, GPU, store and weights, one line each. A record\n"
        "is written apart from all images, found again, and removed. Paste it into a report:\n"
        "it shows no key.",
        epilog=_DOCTOR_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_index_options(doctor_parser)
    return parser


def _add_refit(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "refit",
        help="fit the index again, and embed all of its images again",
        description="Fit recipe, input size, precision and confidence again, to the images that "
        "the index\nhas now, and embed all of them again. Searches go on with the index as it is "
        "until the\nnew one is whole. Start it again to go on after a stop.",
        epilog=_REFIT_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="where the images of the index are, all that were ingested: as for ingest",
    )
    parser.add_argument(
        "--drop-others",
        action="store_true",
        help="lose the images that no SOURCE has as the index has them, such as those that were "
        "put over HTTP; without it, nothing is done if there are any",
    )
    _add_batch_size(parser)
    _add_index_options(parser)


def _add_duplicates(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "duplicates",
        help="list images that are nearly the same picture",
        description="List groups of near-duplicates of the whole index: the same picture saved "
        "again,\nresized or lightly cropped. Nothing is changed.",
        epilog=_DUPLICATES_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--threshold",
        type=_cosine,
        metavar="COSINE",
        help="how alike two images are at least, above 0 and at most 1 (default: what was "
        "measured for the recipe of the index)",
    )
    parser.add_argument(
        "--limit",
        type=_positive,
        metavar="N",
        help=f"only the N largest groups (default: {_GROUPS_SHOWN}; with --json all)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object a line, one for each group"
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="also write the groups as an HTML page of pictures",
    )
    _add_index_options(parser)


def _add_source_options(parser: argparse.ArgumentParser, default_split: str) -> None:
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help=f"only this split of the source ({default_split}); folders called validation, dev, "
        "training and so on count, too",
    )
    parser.add_argument(
        "--label-from",
        choices=LABEL_FROM,
        default="auto",
        help="which folder of a path is the label: auto, the default, is the first one after "
        "folders that hold nothing else and after splits; top the first of all, parent the one "
        "that the image lies in, and none is no label",
    )


def _open(arguments: argparse.Namespace, settings: Settings, *, held_out: bool) -> Source:
    source = open_source(
        arguments.source,
        data_dir=settings.data_dir,
        split=arguments.split,
        held_out=held_out,
        label_from=arguments.label_from,
        s3_endpoint=settings.s3_endpoint,
    )
    if arguments.split and not source.splits:
        raise SourceError(
            f"{source.name} has no splits, which would be folders such as train and test: "
            "leave --split out"
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


def _tell(source: Source) -> None:
    """Before anything begins: what the source holds, and what it leaves out."""
    print(f"{source.name}: {source.total:,} images; {source.about}", flush=True)
    for line in source.skipped.lines():
        print(line, file=sys.stderr)


def _add_batch_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", type=_positive, metavar="N", help="images embedded at once (default: 128)"
    )


def _add_index_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", metavar="NAME", help="index (default: images)")
    parser.add_argument(
        "--namespace", metavar="NAME", help="part of the index (default: __default__)"
    )


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


_natural.__name__ = "number"  # argparse names the type in its message


def _percent(text: str) -> int:
    number = _natural(text)
    if number > 100:
        raise argparse.ArgumentTypeError(f"{text} is more than 100")
    return number


_percent.__name__ = "number"  # argparse names the type in its message


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


_positive.__name__ = "number"  # argparse names the type in its message


def _cosine(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return number


_cosine.__name__ = "number"  # argparse names the type in its message


def _ingest(arguments: argparse.Namespace, settings: Settings) -> int:
    stop = StopSignals()
    following: Iterator[set[str] | None] = iter(())
    if arguments.watch:
        if arguments.prune is None:
            arguments.prune = _MOST_PRUNED_PERCENT
        # From now on, so that nothing is missed that changes during the first ingest.
        following = changes(check_watch(arguments.source), settings.data_dir.resolve(), stop.event)
        next(following, None)
    with ExitStack() as opened:
        try:
            index: VectorIndex | None = opened.enter_context(open_index(settings))
        except IndexNotFoundError:
            index = None
        if arguments.source == "auto":
            chosen = source_to_ingest(index, arguments.split, settings)
            if chosen is None:
                count = index.count() if index is not None else 0
                print(f"index {settings.index} holds {count:,} images: nothing to ingest")
                return 0
            source = chosen
        else:
            source = _open(arguments, settings, held_out=False)
        if index is not None:
            refuse_mixture(index, source, settings)
            source = _named_in(index, source)
        if arguments.prune is not None:
            if arguments.limit or arguments.split:
                option = "--watch" if arguments.watch else "--prune"
                raise SettingsError(
                    f"{option} needs the whole source: leave --limit and --split out"
                )
            check_prune(source)
        source = source.limited(arguments.limit)
        _tell(source)
        if index is None:
            new = create_index_for(source, settings, stop.event)
            if new is None:
                return stop.exit_code
            embedder = new[0]
            index = opened.enter_context(new[1])
            built = index.manifest
            print(
                f"new index {settings.index}: input size {built.model.input_size} "
                f"({built.input_size_reason}), recipe {built.model.recipe}",
                flush=True,
            )
        else:
            embedder = load_embedder(index, settings)
        remember(index, source)
        embedder.warm_up()
        started = time.monotonic()
        seen = SeenSource(source)
        seen.see_all()
        summary = ingest(
            seen.source,
            index,
            embedder,
            settings,
            stop=stop.event,
            restore=arguments.restore,
        )
        if arguments.prune is not None and not summary.interrupted:
            prune(index, seen, arguments.prune)
        if not summary.interrupted:
            remember(index, source, datetime.now(UTC))
        index.flush()
        if summary.embedded or summary.relabelled or summary.moved or index.calibration is None:
            recalibrate(index, summary.sample, stop.event)
        _report(source, summary, index, settings, time.monotonic() - started)
        if arguments.watch and not stop.exit_code:
            print(f"following {source.name}: Ctrl-C ends", flush=True)
        for changed in following:
            source = _ingest_changes(source, changed, arguments, settings, index, embedder, stop)
        is_whole = not summary.unreadable and not source.skipped.lost
        return stop.exit_code or (0 if is_whole else EXIT_UNREADABLE)


def _ingest_changes(
    before: Source,
    changed: set[str] | None,
    arguments: argparse.Namespace,
    settings: Settings,
    index: VectorIndex,
    embedder: Embedder,
    stop: StopSignals,
) -> Source:
    """Ingest what has changed in a folder, or all of it, and prune; returns the folder as it is."""
    try:
        source = _open(arguments, settings, held_out=False)
        if source.origin is not None and before.origin is not None:
            source = source.origin.named(before.origin.name)
        part = source if changed is None else changed_part(source, before, changed)
        seen = SeenSource(part)
        seen.see_all()
        summary = ingest(seen.source, index, embedder, settings, stop=stop.event)
    except SourceError as exc:
        _log.warning("nothing is changed in the index: %s", exc.in_full)
        return before
    pruned = 0 if summary.interrupted else prune(index, seen, arguments.prune)
    if not summary.interrupted:
        remember(index, source, datetime.now(UTC))
    written = summary.embedded + summary.moved + summary.relabelled
    if written or pruned:
        index.flush()
        save_sample(index, summary.sample)
        print(
            f"{datetime.now():%H:%M:%S} {source.name}: {summary.embedded:,} images embedded, "
            f"{summary.moved:,} moved, {summary.relabelled:,} got another label or other metadata, "
            f"{pruned:,} taken out; {index.count():,} images in the index",
            flush=True,
        )
    return source


def _evaluate(arguments: argparse.Namespace, settings: Settings) -> int:
    try:
        # They come with an extra, as neither ingest nor the service needs them.
        from worker import report
        from worker.evaluate import evaluate
    except ModuleNotFoundError as exc:
        raise SettingsError(
            f"evaluate needs {exc.name}: python -m pip install 'image-search[evaluate]'"
        ) from exc
    with open_index(settings) as index:
        if arguments.source == "auto":
            source = source_to_search_for(index, arguments.split, settings)
        else:
            source = _open(arguments, settings, held_out=True)
        source = named_in(index, source)
        _tell(source)
        folder = arguments.output or settings.data_dir / "evaluation"
        report.make_folder(folder)
        embedder = load_embedder(index, settings)
        embedder.warm_up()
        started = time.monotonic()
        evaluation = evaluate(
            source,
            index,
            embedder,
            settings,
            queries=arguments.queries,
            seed=arguments.seed,
            scratch=folder,
        )
    path = report.write_report(evaluation, folder)
    print(report.summary(evaluation.figures))
    print(f"report: {path}, made in {time.monotonic() - started:.1f} s")
    return EXIT_UNREADABLE if evaluation.unreadable else 0


def _copy(arguments: argparse.Namespace) -> int:
    stop = StopSignals()
    started = time.monotonic()
    source, target = parse_end(arguments.source), parse_end(arguments.target)
    copied = copy(source, target, stop.event)
    if copied.interrupted:
        print("stopped; run it again to go on")
        return stop.exit_code
    print(
        f"copied {arguments.source} to {arguments.target}: {copied.written:,} images written, "
        f"{copied.unchanged:,} there already, in {time.monotonic() - started:.1f} s; "
        "count and records are the same"
    )
    return stop.exit_code


def _sources(arguments: argparse.Namespace, settings: Settings) -> int:
    with open_index(settings) as index:
        sources = list_sources(index)
    print(as_json(sources) if arguments.json else as_text(sources))
    return 0


def _doctor(settings: Settings) -> int:
    code = 0
    for finding in examine(settings):
        print(as_line(finding), flush=True)
        if not finding.is_well:
            code = EXIT_FAILED
    return code


def _refit(arguments: argparse.Namespace, settings: Settings) -> int:
    with succession(settings) as place:
        from worker.refit import refit  # imports the embedded store

        stop = StopSignals()
        sources = [
            named_in(place.former, source)
            for name in arguments.sources
            for source in _whole(name, settings)
        ]
        for source in sources:
            _tell(source)
        started = time.monotonic()
        done = refit(sources, place, settings, drop_others=arguments.drop_others, stop=stop.event)
    if done is None:
        print("stopped: start again to go on; until then searches use the index as it was")
        return stop.exit_code
    print(
        f"index {settings.index} is fitted again: {done.images:,} images, {done.embedded:,} of "
        f"them embedded in {time.monotonic() - started:.1f} s; {done.model}"
    )
    if done.dropped:
        print(f"{done.dropped:,} images that no source has were dropped")
    deadline = time.monotonic() + _SECONDS_FOR_READERS
    while not place.remove_former():
        if time.monotonic() > deadline or stop.event.wait(0.2):
            print(
                "the files of the index as it was are still in use by a service: the next ingest "
                "removes them"
            )
            break
    return 0


def _whole(name: str, settings: Settings) -> list[Source]:
    """A source with all of its splits, which data sets have one by one."""
    source = open_source(name, data_dir=settings.data_dir)
    if source.origin is not None:
        return [source]
    splits = [split for split in SPLITS if split in source.splits]
    return [open_source(name, data_dir=settings.data_dir, split=split) for split in splits]


def _duplicates(arguments: argparse.Namespace, settings: Settings) -> int:
    if arguments.page is not None:
        try:
            # It comes with an extra, as neither ingest nor the service needs it.
            from worker.duplicates_page import check_page, write_page
        except ModuleNotFoundError as exc:
            raise SettingsError(
                f"--page needs {exc.name}: python -m pip install 'image-search[evaluate]'"
            ) from exc
        check_page(arguments.page)
    with open_index(settings) as index:
        recipe = index.manifest.model.recipe
        found = find_duplicates(index, arguments.threshold or NEAR_DUPLICATE_COSINE[recipe])
        if arguments.page is not None:
            groups_shown = arguments.limit or _GROUPS_SHOWN
            write_page(found, index, settings.index, arguments.page, groups_shown)
    most = arguments.limit or (None if arguments.json else _GROUPS_SHOWN)
    for line in json_lines(found, most) if arguments.json else text_lines(found, most):
        print(line)
    about = sys.stderr if arguments.json else sys.stdout
    for line in summary(found, most):
        print(line, file=about)
    if arguments.page is not None:
        print(f"page: {arguments.page}", file=about)
    sys.stdout.flush()  # here, where it is noticed that nobody reads
    return 0


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
    if summary.relabelled:
        print(f"{summary.relabelled:,} images got another label or other metadata")
    if summary.moved:
        print(f"{summary.moved:,} images were in the index under another name: not embedded again")
    if summary.deleted:
        print(
            f"{summary.deleted:,} images stay out of the index, as they were deleted over HTTP: "
            "--restore brings them back"
        )
    if source.name == "sample":
        print(
            "these pictures are drawn, for trying; your own need an index of their own: "
            "--index photos, or make run SOURCE=path/to/folder IMAGE_SEARCH_INDEX=photos"
        )
    if index.retries:
        print(f"{index.retries:,} requests to the store had to be sent again")


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
