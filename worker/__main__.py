"""The worker's command line."""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from image_search.embedding import Embedder, has_gpu, measure_activation_maxima
from image_search.errors import (
    DownloadError,
    ImageSearchError,
    IndexNotFoundError,
    SettingsError,
    SourceError,
    StoreError,
)
from image_search.index import VectorIndex
from image_search.manifest import Manifest
from image_search.settings import Settings, load_settings
from image_search.stores import create_index, open_index
from image_search.weights import AUTO, choose_weights
from worker.confidence import SampledSource, calibrate
from worker.ingest import Summary, calibration_pixels, ingest
from worker.recipes import fit_recipe
from worker.sources import Source, Split, open_source

_log = logging.getLogger("worker")

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREADABLE: Final = 3

_EXIT_CODES: Final = """\
exit codes:
  0    every image of the source is in the index
  1    stopped by an error (disk, store, weights, download); start again to go on
  2    wrong usage, bad setting, or a source that does not exist or holds no images
  3    finished, but some images could not be read; they are listed on standard error
  130  stopped by SIGINT (Ctrl-C), 143 by SIGTERM: the batch in flight was finished;
       start again to go on

Settings are environment variables, IMAGE_SEARCH_*; the README lists them.
"""


_EVALUATE_EXIT_CODES: Final = """\
exit codes:
  0    the report is written
  1    stopped by an error (no index, store, weights, download)
  2    wrong usage, bad setting, or a source that does not exist or holds no images
  3    the report is written, but some images could not be read; it lists them
  130  stopped by SIGINT (Ctrl-C)
"""


def main() -> int:
    """Parse the command line and run; returns the exit code."""
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
        return _ingest(arguments.source, arguments.split, arguments.limit, settings)
    except (SettingsError, SourceError) as exc:
        return _fail(str(exc), EXIT_USAGE)
    except ImageSearchError as exc:
        return _fail(str(exc), EXIT_FAILED)
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
        help="cifar10 (downloaded), sample (drawn), a folder, zip or tar of images, flat or with "
        "one sub-folder a label, or CIFAR-10's binary archive; auto, the default, is cifar10 "
        "where it is to be had and sample otherwise",
    )
    ingest_parser.add_argument(
        "--split",
        choices=("train", "test"),
        default="train",
        help="of CIFAR-10 or the sample (default: train)",
    )
    ingest_parser.add_argument(
        "--limit", type=_positive, metavar="N", help="only the first N images"
    )
    ingest_parser.add_argument(
        "--metric",
        choices=("cosine", "euclidean", "dotproduct"),
        help="metric of a new index (default: cosine)",
    )
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
    evaluate_parser.add_argument(
        "--split",
        choices=("train", "test"),
        default="test",
        help="of CIFAR-10 or the sample (default: test)",
    )
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
    _add_index_options(evaluate_parser)
    return parser


def _add_index_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", type=_positive, metavar="N", help="images embedded at once (default: 128)"
    )
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


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


_positive.__name__ = "number"  # argparse names the type in its message


def _ingest(source_name: str, split: Split, limit: int | None, settings: Settings) -> int:
    stop = _Stop()
    index: VectorIndex | None
    try:
        index = open_index(settings)
    except IndexNotFoundError:
        index = None
    source = _source(source_name, split, index, settings)
    if source is None:
        return 0
    if index is None:
        new = _new_index(source, settings, limit, stop.event)
        if stop.signal is not None or new is None:
            return 128 + (stop.signal or signal.SIGINT)
        embedder, index = new
    else:
        embedder = _embedder_of(index, settings)
    embedder.warm_up()
    started = time.monotonic()
    sampled = SampledSource(source)
    summary = ingest(sampled.source, index, embedder, settings, limit=limit, stop=stop.event)
    index.flush()
    if summary.embedded or index.calibration is None:
        _calibrate(index, sampled.ids, stop.event)
    _report(source, summary, index, settings, time.monotonic() - started)
    index.close()
    if stop.signal is not None:
        return 128 + stop.signal
    return EXIT_UNREADABLE if summary.unreadable else 0


def _calibrate(index: VectorIndex, ids: list[str], stop: threading.Event) -> None:
    """The images are in the index: that this fails does not make the ingest fail."""
    try:
        calibration = calibrate(index, ids, stop)
        if calibration is not None:
            index.save_calibration(calibration)
    except ModuleNotFoundError as exc:
        _log.warning(
            "matches get no confidence, which needs %s: "
            "python -m pip install 'image-search[evaluate]'",
            exc.name,
        )
    except StoreError as exc:
        _log.warning("confidences stay as they were, as they could not be fitted: %s", exc)


def _evaluate(arguments: argparse.Namespace, settings: Settings) -> int:
    try:
        # They come with an extra, as neither ingest nor the service needs them.
        from worker import report
        from worker.evaluate import evaluate
    except ModuleNotFoundError as exc:
        raise SettingsError(
            f"evaluate needs {exc.name}: python -m pip install 'image-search[evaluate]'"
        ) from exc
    index = open_index(settings)
    name = _held_out(index) if arguments.source == "auto" else arguments.source
    source = open_source(name, split=arguments.split, data_dir=settings.data_dir)
    folder = arguments.output or settings.data_dir / "evaluation"
    report.make_folder(folder)
    embedder = _embedder_of(index, settings)
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
    index.close()
    path = report.write_report(evaluation, folder)
    print(report.summary(evaluation.figures))
    print(f"report: {path}, made in {time.monotonic() - started:.1f} s")
    return EXIT_UNREADABLE if evaluation.unreadable else 0


def _held_out(index: VectorIndex) -> str:
    """The source that has other images of what the index holds."""
    for name in ("cifar10", "sample"):
        if index.list_ids(prefix=f"{name}-", limit=1).ids:
            return name
    raise SourceError(
        "the index holds neither CIFAR-10 nor the sample: name the images to search for, "
        "python -m worker evaluate SOURCE"
    )


def _source(
    name: str, split: Split, index: VectorIndex | None, settings: Settings
) -> Source | None:
    """The source to ingest; None when `auto` finds an index of something else."""
    if name != "auto":
        return open_source(name, split=split, data_dir=settings.data_dir)
    if index is not None and index.count() and not index.list_ids(prefix="cifar10-", limit=1).ids:
        if index.list_ids(prefix="sample-", limit=1).ids:
            return open_source("sample", split=split, data_dir=settings.data_dir)
        print(f"index {settings.index} holds {index.count():,} images: nothing to ingest")
        return None
    try:
        return open_source("cifar10", split=split, data_dir=settings.data_dir)
    except DownloadError as exc:
        _log.warning("ingesting the drawn sample, as CIFAR-10 cannot be had: %s", exc)
        return open_source("sample", split=split, data_dir=settings.data_dir)


def _new_index(
    source: Source, settings: Settings, limit: int | None, stop: threading.Event
) -> tuple[Embedder, VectorIndex] | None:
    """The model and the index that is made for it; None when `stop` was set meanwhile."""
    weights = choose_weights(settings.weights)
    maxima: tuple[float, ...] = ()
    if settings.precision == "int8" or (settings.precision == "auto" and not has_gpu()):
        pixels = calibration_pixels(source, settings)
        if len(pixels):
            maxima = measure_activation_maxima(weights, pixels)
    recipe = fit_recipe(source, weights, maxima, settings, limit=limit, stop=stop)
    if stop.is_set():
        return None
    embedder = Embedder(weights, settings.input_size, maxima, recipe)
    manifest = Manifest.new(embedder.model, settings.metric, settings.namespace, maxima)
    index = create_index(settings, manifest, recipe)
    if index.manifest != manifest:  # another worker has created it meanwhile
        embedder = _embedder_of(index, settings)
    return embedder, index


def _embedder_of(index: VectorIndex, settings: Settings) -> Embedder:
    """What is set has to fit the index, and what is not set is as the index has it."""
    built_with = index.manifest
    if "metric" in settings.model_fields_set:
        built_with.require_metric(settings.metric)
    model = built_with.model
    weights = model.weights if settings.weights == AUTO else settings.weights
    size = settings.input_size if "input_size" in settings.model_fields_set else model.input_size
    if settings.precision != "auto":
        built_with.require_model(model.model_copy(update={"precision": settings.precision}))
    if settings.recipe not in {"auto", model.recipe}:
        if model.recipe != "none":
            built_with.require_model(model.model_copy(update={"recipe": settings.recipe}))
        _log.warning("the index has plain embeddings (recipe none), and keeps them")
    embedder = Embedder(weights, size, built_with.activation_maxima, index.load_recipe())
    built_with.require_model(embedder.model)
    return embedder


def _report(
    source: Source, summary: Summary, index: VectorIndex, settings: Settings, seconds: float
) -> None:
    state = "stopped" if summary.interrupted else "finished"
    print(
        f"{state} {source.name}: {summary.embedded:,} images embedded, {summary.unchanged:,} "
        f"unchanged, {len(summary.unreadable):,} unreadable, {source.ignored:,} other files "
        f"ignored, in {seconds:.1f} s ({summary.embedded / seconds:,.0f} images/s)\n"
        f"index {settings.index}, namespace {settings.namespace}, {index.manifest.metric}, "
        f"{index.manifest.model}: {index.count():,} images"
    )
    if index.retries:
        print(f"{index.retries:,} requests to the store had to be sent again")


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


class _Stop:
    """The first SIGINT or SIGTERM asks for an orderly end, a second one ends at once."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signal: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.event.is_set():
            _exit_now(number)
        self.signal = number
        self.event.set()
        print("finishing the batch in flight; once more to end at once", file=sys.stderr)


def _exit_now(number: int) -> NoReturn:
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
