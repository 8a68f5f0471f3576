"""The command line: image-search."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from difflib import get_close_matches
from itertools import islice
from typing import Any, Final, NamedTuple

import shtab

from image_search_client import terminal, threads
from image_search_client.client import Client
from image_search_client.errors import (
    ImageNotFoundError,
    ImageRejectedError,
    ImageSearchError,
    UnreadableImageError,
)
from image_search_client.inputs import Example, read_image
from image_search_client.names import clock, readable
from image_search_client.results import UNFAMILIAR, SearchResult
from image_search_client.version import VERSION

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INCOMPLETE: Final = 3
EXIT_INTERRUPTED: Final = 130

_CONCURRENCY: Final = 8
_LISTED_AT_ONCE: Final = 100
_STANDARD_INPUT: Final = "-"
_EPILOG: Final = """\
environment:
  IMAGE_SEARCH_URL      address of the service, unless --service is given
  IMAGE_SEARCH_API_KEY  key, for services that need one

exit codes:
  0    done
  1    the service cannot be reached, is unavailable, or refuses the request
  2    wrong usage
  3    some images could not be read, were rejected or are not in the index; the others are done
  130  stopped by Ctrl-C
"""

Arguments = argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # replaced by something that is no text file
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        parsed = make_parser().parse_args(arguments)
        with Client(
            parsed.service, api_key=os.environ.get("IMAGE_SEARCH_API_KEY") or None
        ) as client:
            status: int = parsed.run(client, parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has all it wanted
        _discard_output()
        return 0
    except OSError as exc:
        _discard_output()
        return _fail(str(exc), EXIT_FAILED)
    except ImageSearchError as exc:
        return _fail(str(exc), EXIT_FAILED)
    except ValueError as exc:
        return _fail(str(exc), EXIT_USAGE)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--service",
        metavar="URL",
        default=os.environ.get("IMAGE_SEARCH_URL") or "http://127.0.0.1:8000",
        help="address of the service (default: %(default)s)",
    )
    common.add_argument("--json", action="store_true", help="print JSON, without pictures")
    parser = argparse.ArgumentParser(
        prog="image-search",
        description="Find similar images, and look after the index of an image search service.",
        epilog=f"example: image-search query cat.jpg --top-k 5\n\n{_EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    shtab.add_argument_to(
        parser, "--print-completion", help="print what completes this command in a shell"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[Client, Arguments], int], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            parents=[common],
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run, parser=added)
        return added

    query = command(
        "query", _query, "print the images of the index that are most similar to each picture"
    )
    query.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="a picture or video: a file, a URL, or - for standard input",
    )
    query.add_argument(
        "--id",
        action="append",
        default=[],
        metavar="ID",
        help="an image or a video of the index; repeatable",
    )
    query.add_argument(
        "--top-k",
        type=int,
        default=10,
        metavar="N",
        help="how many matches, 1 to 100 (default: 10)",
    )
    _add_choice(query, """'{"year": {"$gte": 2020}}'""")
    query.add_argument(
        "--min-score", type=float, metavar="X", help="only matches at least this similar"
    )
    query.add_argument(
        "--min-confidence",
        type=float,
        metavar="X",
        help="only matches with at least this confidence, 0 to 1",
    )
    query.add_argument(
        "--deduplicate", action="store_true", help="leave out near-duplicates of better matches"
    )
    query.add_argument(
        "--group-by",
        choices=("none", "video"),
        default="none",
        help="video: one match for each video, with the times of its best moments (default: none)",
    )
    query.add_argument(
        "--pictures",
        choices=("auto", "never"),
        default="auto",
        help="show pictures if the terminal can: iTerm2, WezTerm, kitty, Ghostty, or 24-bit "
        "colour; needs Pillow (default: auto)",
    )

    listed = command("list", _list, "list images of the index, without a picture to search with")
    listed.add_argument(
        "--words",
        default="",
        metavar="TEXT",
        help="only images with all of these words in their name, label or metadata",
    )
    _add_choice(listed, """'{"taken": {"$gte": "2024-07-01"}}'""")
    listed.add_argument(
        "--prefix", default="", metavar="TEXT", help="only ids that start with TEXT"
    )
    listed.add_argument(
        "--sort",
        metavar="FIELD",
        help="id, label or a field of metadata; --sort=-taken lists the newest first",
    )
    listed.add_argument(
        "--limit",
        type=int,
        default=100,
        metavar="N",
        help="at most N images; 0 for all (default: 100)",
    )

    compare = command(
        "compare", _compare, "print how similar two pictures are, and what that means in this index"
    )
    compare.add_argument(
        "images", nargs="*", metavar="IMAGE", help="a file, a URL, or - for standard input"
    )
    compare.add_argument(
        "--id", action="append", default=[], metavar="ID", help="an image of the index; repeatable"
    )

    duplicates = command(
        "duplicates", _duplicates, "print groups of images that are nearly the same picture"
    )
    duplicates.add_argument(
        "--threshold",
        type=float,
        metavar="COSINE",
        help="least cosine similarity of two near-duplicates, above 0 and at most 1 (default: "
        "measured for the recipe of the index)",
    )
    _add_choice(duplicates, """'{"year": {"$gte": 2020}}'""")

    put = command("put", _put, "insert an image, or all images of a folder, or replace them")
    put.add_argument(
        "id",
        nargs="?",
        metavar="ID",
        help="id of the image in the index; for a folder what ids begin with (default: its name)",
    )
    put.add_argument(
        "image",
        metavar="IMAGE",
        help="a file, - for standard input, or a folder, of which only images are sent that are "
        "new or have changed",
    )
    put.add_argument(
        "--label",
        metavar="LABEL",
        help="what the image shows; of a folder, each image gets the name of its sub-folder",
    )
    put.add_argument(
        "--metadata", type=_json_object, metavar="JSON", help="""such as '{"year": 2020}'"""
    )
    delete = command("delete", _delete, "delete images from the index")
    delete.add_argument("ids", nargs="+", metavar="ID", help="id of an image")
    command("labels", _labels, "print the labels of the index, and how many images have each")
    command("health", _health, "print the state of the service, or why it cannot answer")
    return parser


def _add_choice(parser: argparse.ArgumentParser, example: str) -> None:
    """Options that choose a part of the index."""
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="LABEL",
        help="only images with this label; repeat it to allow several",
    )
    parser.add_argument(
        "--filter",
        type=_json_object,
        metavar="JSON",
        help=f"only images whose metadata passes, such as {example}",
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"not JSON: {exc}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value


class _Asked(NamedTuple):
    """One query of the command line, and whether it is an id, a URL or a file."""

    name: str
    kind: str


def _asked(arguments: Arguments) -> list[_Asked]:
    return [
        _Asked(name, "url" if name.startswith(("http://", "https://")) else "image")
        for name in arguments.images
    ] + [_Asked(name, "id") for name in arguments.id]


_Outcome = SearchResult | ImageSearchError


def _query(client: Client, arguments: Arguments) -> int:
    asked = _asked(arguments)
    if not asked:
        arguments.parser.error("an IMAGE or --id is needed")
    protocol = None
    if arguments.pictures == "auto" and not arguments.json and sys.stdout.isatty():
        protocol = terminal.picture_protocol(os.environ)
    options: dict[str, Any] = {
        "top_k": arguments.top_k,
        "labels": arguments.label,
        "filter": arguments.filter,
        "min_score": arguments.min_score,
        "min_confidence": arguments.min_confidence,
        "deduplicate": arguments.deduplicate,
        "group_by": arguments.group_by,
        "thumbnails": protocol is not None,
    }

    def outcome(query: _Asked) -> _Outcome:
        try:
            if query.kind == "id":
                return client.query(id=query.name, **options)
            if query.kind == "url":
                return client.query(url=query.name, **options)
            return client.search(_image(query.name), **options)
        except (ImageRejectedError, ImageNotFoundError, UnreadableImageError) as exc:
            return exc

    status = 0
    nothing = False
    # Requests in flight end before the client's connections are closed: they would wait for their
    # time limit otherwise.
    with closing(threads.map_ordered(outcome, asked, _CONCURRENCY)) as outcomes:
        for number, (query, found) in enumerate(zip(asked, outcomes, strict=True)):
            nothing = nothing or (isinstance(found, SearchResult) and not found)
            if not isinstance(found, SearchResult):
                status = _fail(f"{query.name}: {_reason(found)}", EXIT_INCOMPLETE)
            if arguments.json:
                _print_json({query.kind: query.name, **_as_json(found)})
            elif isinstance(found, SearchResult):
                if len(asked) > 1:
                    print(("\n" if number else "") + terminal.printable(query.name))
                _print_matches(found, protocol)
    if nothing and arguments.label:
        _name_unknown(arguments.label, client.labels())
    return status


def _name_unknown(wanted: Sequence[str], labels: Iterable[str]) -> None:
    """Labels that no image has are no error: there may be some tomorrow."""
    known = {label.casefold(): label for label in labels}
    for label in wanted:
        if label in known.values():
            continue
        meant = get_close_matches(label.casefold(), known, n=1)
        question = f": did you mean {known[meant[0]]!r}?" if meant else ""
        message = f"image-search: no image has the label {label!r}{question}"
        print(terminal.printable(message), file=sys.stderr)


def _print_matches(result: SearchResult, protocol: terminal.Protocol | None) -> None:
    if not result:
        print("no matches")
        return
    if result.familiar is False:
        print(UNFAMILIAR)
    if protocol:
        columns = shutil.get_terminal_size().columns
        captions = [
            " ".join(
                filter(None, [clock(match.time) if match.time is not None else "", match.label])
            )
            for match in result
        ]
        pictures = [match.thumbnail for match in result]
        print(terminal.strips(pictures, protocol, columns, captions))
    of_videos = any(match.time is not None for match in result)
    rows = [("#", "score", "confidence", "label", *(("time",) if of_videos else ()), "id")]
    for number, match in enumerate(result, 1):
        confidence = "-" if match.confidence is None else f"{match.confidence:.0%}"
        name = readable(match.id if match.video is None else match.video)
        shown = (", ".join(map(clock, match.times)) or "-",) if of_videos else ()
        score = f"{match.score:.3f}"
        rows.append((str(number), score, confidence, match.label or "-", *shown, name))
    print(terminal.table(rows, right=(0, 1, 2)))
    if not result.complete:
        print("There may be more matches: narrow the search with --filter, or lower --top-k.")


def _as_json(outcome: _Outcome) -> dict[str, Any]:
    if isinstance(outcome, SearchResult):
        return {
            "matches": outcome.to_dicts(),
            "familiarity": outcome.familiarity,
            "familiar": outcome.familiar,
            "complete": outcome.complete,
            "model": asdict(outcome.model),
            "took_ms": asdict(outcome.took_ms),
        }
    return {"problem": {"code": outcome.code, "detail": _reason(outcome)}}


def _compare(client: Client, arguments: Arguments) -> int:
    asked = _asked(arguments)
    if len(asked) != 2:
        arguments.parser.error(f"two pictures are needed, as IMAGE or --id, not {len(asked)}")
    examples = []
    for each in asked:
        try:
            examples.append(_example(each))
        except UnreadableImageError as exc:
            return _fail(f"{each.name}: {_reason(exc)}", EXIT_INCOMPLETE)
    try:
        comparison = client.compare(*examples)
    except (ImageRejectedError, ImageNotFoundError) as exc:
        reason = _reason(exc)
        for field, each in zip("ab", asked, strict=True):  # as the service names them
            if reason.startswith(f"{field}: "):
                reason = f"{each.name}{reason[1:]}"
                break
        return _fail(reason, EXIT_INCOMPLETE)
    if arguments.json:
        names = {name: {each.kind: each.name} for name, each in zip("ab", asked, strict=True)}
        _print_json({**names, **asdict(comparison)})
        return 0
    shares = {
        "of one kind": comparison.share_of_same_kind_above,
        "of different kinds": comparison.share_of_different_kinds_above,
    }
    rows = [("score", f"{comparison.score:.3f}")]
    for kinds, share in shares.items():
        rows.append((f"pairs {kinds} that score higher", _share(share)))
    print(terminal.table(rows, right=(1,)))
    return 0


def _example(asked: _Asked) -> Example:
    if asked.kind == "id":
        return Example(id=asked.name)
    if asked.kind == "url":
        return Example(url=asked.name)
    return Example(image=read_image(_image(asked.name)).content)


def _share(share: float | None) -> str:
    if share is None:
        return "-"
    # Quantiles know no smaller ones.
    return "< 0.01 %" if share < 0.0001 else f"{share:.2%}".replace("%", " %")


def _put(client: Client, arguments: Arguments) -> int:
    if os.path.isdir(arguments.image):
        return _put_folder(client, arguments)
    if arguments.id is None:
        arguments.parser.error("an ID is needed, unless IMAGE is a folder")
    try:
        stored = client.put_image(
            arguments.id,
            _image(arguments.image),
            label=arguments.label,
            metadata=arguments.metadata,
        )
    except (ImageRejectedError, UnreadableImageError) as exc:
        return _fail(f"{arguments.image}: {_reason(exc)}", EXIT_INCOMPLETE)
    if arguments.json:
        _print_json({"id": stored.id, "label": stored.label, "metadata": stored.metadata})
    return 0


def _put_folder(client: Client, arguments: Arguments) -> int:
    if arguments.label is not None or arguments.metadata is not None:
        arguments.parser.error("--label and --metadata are for single images")
    done = client.put_folder(arguments.image, prefix=arguments.id)
    if arguments.json:
        errors = {
            path: {"code": exc.code, "detail": _reason(exc)} for path, exc in done.errors.items()
        }
        counts = {"sent": done.sent, "unchanged": done.unchanged, "left_out": done.left_out}
        _print_json({"folder": arguments.image, **counts, "errors": errors})
    else:
        print(
            f"{done.sent:,} images sent, {done.unchanged:,} unchanged, {len(done.errors):,} "
            f"failed, {done.left_out:,} other files left out"
        )
    for path, exc in done.errors.items():
        _fail(f"{path}: {_reason(exc)}", EXIT_INCOMPLETE)
    return EXIT_INCOMPLETE if done.errors else 0


def _delete(client: Client, arguments: Arguments) -> int:
    status = 0
    for id_ in arguments.ids:
        try:
            client.delete_image(id_)
        except ImageNotFoundError as exc:
            status = _fail(f"{id_}: {_reason(exc)}", EXIT_INCOMPLETE)
    return status


def _list(client: Client, arguments: Arguments) -> int:
    if arguments.limit < 0:
        arguments.parser.error(f"--limit is {arguments.limit}; it must be 0 or more")
    images = client.iter_images(
        labels=arguments.label,
        filter=arguments.filter,
        words=arguments.words,
        prefix=arguments.prefix,
        sort=arguments.sort,
        page_size=_LISTED_AT_ONCE,
    )
    limit = arguments.limit or None
    if arguments.json:
        for image in islice(images, limit):
            _print_json({"id": image.id, "label": image.label, "metadata": image.metadata})
        return 0
    found = list(islice(images, limit))
    if not found:
        print("no images")
        if arguments.label:
            _name_unknown(arguments.label, client.labels())
        return 0
    rows = [
        (image.label or "-", _moment(image.metadata.get("taken")), readable(image.id))
        for image in found
    ]
    print(terminal.table([("label", "taken", "id"), *rows]))
    if next(images, None) is not None:
        print(f"image-search: the first {len(found):,}; --limit 0 lists all", file=sys.stderr)
    return 0


def _duplicates(client: Client, arguments: Arguments) -> int:
    groups = client.duplicates(
        threshold=arguments.threshold, labels=arguments.label, filter=arguments.filter
    )
    for number, group in enumerate(groups, start=1):
        if arguments.json:
            _print_json({"group": number, "images": [asdict(image) for image in group]})
            continue
        rows = [(f"{image.score:.3f}", image.label or "-", readable(image.id)) for image in group]
        print(("\n" if number > 1 else "") + f"group {number}: {len(group):,} images")
        print(terminal.table([("score", "label", "id"), *rows], right=(0,)))
    if not groups and not arguments.json:
        print("no near-duplicates")
    return 0


def _moment(seconds: object) -> str:
    """The date and time that a number of seconds since 1970 stands for."""
    if not isinstance(seconds, int | float):
        return "-"
    try:
        moment = datetime(1970, 1, 1) + timedelta(seconds=seconds)
    except OverflowError:
        return "-"
    return moment.isoformat(sep=" ", timespec="minutes")


def _labels(client: Client, arguments: Arguments) -> int:
    labels = client.labels()
    if arguments.json:
        _print_json(labels)
    elif labels:
        rows = [("-" if count is None else str(count), label) for label, count in labels.items()]
        print(terminal.table(rows, right=(0,)))
    return 0


def _health(client: Client, arguments: Arguments) -> int:
    facts = asdict(client.health())
    facts["created_at"] = facts["created_at"].isoformat()
    if arguments.json:
        _print_json(facts)
        return 0
    model = facts.pop("model")
    facts["model"] = ", ".join(f"{name} {value}" for name, value in model.items())
    print(terminal.table([(name, str(value)) for name, value in facts.items()]))
    return 0


def _image(name: str) -> str | bytes:
    return sys.stdin.buffer.read() if name == _STANDARD_INPUT else name


def _reason(error: ImageSearchError) -> str:
    return str(error.strerror if isinstance(error, UnreadableImageError) else error)


def _print_json(value: object) -> None:
    # Escaped, so that nothing in it can command a terminal.
    print(json.dumps(value))


def _discard_output() -> None:
    """What is still to be written would fail again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int) -> int:
    print(f"image-search: {terminal.printable(message)}", file=sys.stderr)
    return status
