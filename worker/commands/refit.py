"""Fits an index again."""

import argparse
import time
from typing import Final

from image_search.settings import Settings
from image_search.stores import succession
from worker.commands.options import Commands, add_batch_size, add_index_options, tell
from worker.origin import named_in
from worker.signals import StopSignals
from worker.sources import SPLITS, Source, open_source

_EXIT_CODES: Final = """\
exit codes:
  0    the index was fitted again
  1    stopped by an error (disk, store, weights); run it again to resume
  2    wrong usage, bad setting, a source that does not exist, or images in the index
       that no source has
  130  stopped by SIGINT (Ctrl-C), 143 by SIGTERM; run it again to resume
"""
# A service takes up the new index within a second, and then loads its model.
_SECONDS_FOR_READERS: Final = 60.0


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "refit",
        help="fit the index again, and embed all of its images again",
        description="Fit recipe, input size, precision and confidence again, to the images that "
        "the index\nhas now, and embed all of them again. Searches use the current index until "
        "the new one\nis complete. Run it again to resume after a stop.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="all sources of the images in the index, as for ingest",
    )
    parser.add_argument(
        "--drop-others",
        action="store_true",
        help="drop the images that no SOURCE has exactly as the index has them, such as those "
        "that were added over HTTP; without it, nothing is done if there are any",
    )
    add_batch_size(parser)
    add_index_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Fit the index again; returns the exit code."""
    with succession(settings) as place:
        from worker.refit import refit  # imports the embedded store

        stop = StopSignals()
        sources = [
            named_in(place.former, source)
            for name in arguments.sources
            for source in _whole(name, settings)
        ]
        for source in sources:
            tell(source)
        started = time.monotonic()
        done = refit(sources, place, settings, drop_others=arguments.drop_others, stop=stop.event)
    if done is None:
        print("stopped: run it again to resume; until then, searches use the index as it was")
        return stop.exit_code
    print(
        f"fitted index {settings.index} again: {done.images:,} images, {done.embedded:,} of "
        f"them embedded in {time.monotonic() - started:.1f} s; {done.model}"
    )
    if done.dropped:
        print(f"{done.dropped:,} images that no source has were dropped")
    deadline = time.monotonic() + _SECONDS_FOR_READERS
    while not place.remove_former():
        if time.monotonic() > deadline or stop.event.wait(0.2):
            print(
                "the files of the old index are still in use by a service: the next ingest removes "
                "them"
            )
            break
    return 0


def _whole(name: str, settings: Settings) -> list[Source]:
    """A source with all of its splits, which data sets have one by one."""
    source = open_source(name, data_dir=settings.local_dir)
    if source.origin is not None:
        return [source]
    splits = [split for split in SPLITS if split in source.splits]
    return [open_source(name, data_dir=settings.local_dir, split=split) for split in splits]
