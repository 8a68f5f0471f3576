"""What the commands have in common: options, types of arguments, how a source is opened."""

import argparse
import sys
from typing import Final, TypeAlias

from image_search.errors import SourceError
from image_search.settings import Settings
from worker.shards import Shard
from worker.sources import LABEL_FROM, SPLITS, Source, open_source

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREADABLE: Final = 3

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_source_options(parser: argparse.ArgumentParser, default_split: str) -> None:
    """Add how a source is read to a parser."""
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help=f"only this split of the source ({default_split}); folders called validation, dev, "
        "training and so on are recognised, too",
    )
    parser.add_argument(
        "--label-from",
        choices=LABEL_FROM,
        default="auto",
        help="which folder of a path is the label: auto is the first one after wrapper folders "
        "and splits, top the very first, parent the one that contains the image, and none means "
        "no label (default: auto)",
    )


def add_batch_size(parser: argparse.ArgumentParser) -> None:
    """Add how many images are embedded at once."""
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="number of images to embed at once (default: 128)",
    )


def add_index_options(parser: argparse.ArgumentParser) -> None:
    """Add which index is meant."""
    parser.add_argument("--index", metavar="NAME", help="name of the index (default: images)")
    parser.add_argument(
        "--namespace", metavar="NAME", help="part of the index to use (default: __default__)"
    )


def natural(text: str) -> int:
    """An argument of 0 or more."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


natural.__name__ = "number"  # argparse names the type in its message


def percent(text: str) -> int:
    """An argument of 0 to 100."""
    number = natural(text)
    if number > 100:
        raise argparse.ArgumentTypeError(f"{text} is more than 100")
    return number


percent.__name__ = "number"  # argparse names the type in its message


def positive(text: str) -> int:
    """An argument of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


positive.__name__ = "number"  # argparse names the type in its message


def rate(text: str) -> float:
    """An argument of 0.001 to 1,000."""
    number = float(text)
    if not 0.001 <= number <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is not 0.001 to 1,000")
    return number


rate.__name__ = "number"  # argparse names the type in its message


def shard(text: str) -> Shard:
    """An argument such as 0/4."""
    try:
        return Shard.parse(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def open_chosen(arguments: argparse.Namespace, settings: Settings, *, held_out: bool) -> Source:
    """Open the source that the arguments name; raises SourceError."""
    source = open_source(
        arguments.source,
        data_dir=settings.local_dir,
        split=arguments.split,
        held_out=held_out,
        label_from=arguments.label_from,
        s3_endpoint=settings.s3_endpoint,
    )
    if arguments.split and not source.splits:
        raise SourceError(
            f"{source.name} has no splits, that is, folders such as train and test: "
            "leave out --split"
        )
    return source


def contents(source: Source) -> str:
    """How many images a source has, and how many videos if there are any."""
    if not source.videos:
        return f"{source.total:,} images"
    videos = len(source.videos)
    return f"{source.total - videos:,} images and {videos:,} video{'s'[: videos != 1]}"


def tell(source: Source) -> None:
    """Before anything begins: what the source holds, and what it leaves out."""
    print(f"{source.name}: {contents(source)}; {source.about}", flush=True)
    for line in source.skipped.lines():
        print(line, file=sys.stderr)
