"""Measures how good the search is."""

import argparse
import time
from pathlib import Path
from typing import Final

from image_search.errors import SettingsError
from image_search.program import install
from image_search.settings import Settings
from image_search.stores import open_index
from worker.auto import source_to_search_for
from worker.commands.options import (
    EXIT_UNREADABLE,
    Commands,
    add_batch_size,
    add_index_options,
    add_source_options,
    natural,
    open_chosen,
    positive,
    tell,
)
from worker.model import load_embedder
from worker.origin import named_in

_EXIT_CODES: Final = """\
exit codes:
  0    the report is written
  1    stopped by an error (no index, store, weights, download)
  2    wrong usage, bad setting, or a source that does not exist or has no images
  3    the report is written, but some images could not be read; it lists them
  130  stopped by SIGINT (Ctrl-C)
"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "evaluate",
        help="measure how good the search is",
        description="Search for images whose labels are known, preferably images that are not in\n"
        "the index, and write a report: report.html, with all its figures in figures.json.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        nargs="?",
        default="auto",
        metavar="SOURCE",
        help="the query images: cifar10 (downloaded), sample (drawn), a folder, zip or tar of "
        "images with one sub-folder per label, or CIFAR-10's binary archive; auto, the default, is "
        "cifar10 or sample, whichever the index has; without labels there are fewer figures",
    )
    add_source_options(parser, "default: test, if the source has it")
    parser.add_argument(
        "--queries",
        type=positive,
        default=10_000,
        metavar="N",
        help="at most N images of the source, drawn at random (default: 10,000)",
    )
    parser.add_argument(
        "--seed",
        type=natural,
        default=0,
        metavar="N",
        help="seed of the random numbers (default: 0)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where to write the report (default: evaluation, in the data folder)",
    )
    add_batch_size(parser)
    add_index_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Evaluate, and write the report; returns the exit code."""
    try:
        # They come with an extra, as neither ingest nor the service needs them.
        from worker import report
        from worker.evaluate import evaluate
    except ModuleNotFoundError as exc:
        raise SettingsError(f"evaluate needs {exc.name}: {install('evaluate')}") from exc
    with open_index(settings) as index:
        if arguments.source == "auto":
            source = source_to_search_for(index, arguments.split, settings)
        else:
            source = open_chosen(arguments, settings, held_out=True)
        source = named_in(index, source)
        tell(source)
        folder = arguments.output or settings.local_dir / "evaluation"
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
