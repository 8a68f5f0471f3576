"""CSV files and JSON lines that name images, with a label and metadata for each."""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import urljoin, urlsplit

from image_search.errors import ImageError, SourceError
from image_search.values import LABEL_FIELD
from worker.sources.columns import Columns, Row, parsed
from worker.sources.files import (
    Choice,
    Content,
    describe,
    is_video,
    matching_split,
    modified,
    open_file,
    read_bounded,
    reading,
)
from worker.sources.labels import LabelFrom
from worker.sources.names import as_text, composed, file_bytes, id_of, legacy_encoding, printable
from worker.sources.remote import AT_ONCE, Remote, is_remote, without_secrets
from worker.sources.skipped import Kind, Skipped
from worker.sources.source import Item, Origin, Source, damage_named

CSV_SUFFIXES: Final = (".csv", ".tsv")
JSON_SUFFIXES: Final = (".jsonl", ".ndjson")
LIST_SUFFIXES: Final = (".txt",)
# The column that names the image; the first of these that a table has.
PATH_COLUMNS: Final = (
    *("path", "file_name", "filename", "file", "filepath", "image_path", "image", "url"),
)
# In whatever case.
_KNOWN: Final = {LABEL_FIELD, "split"}
_DELIMITERS: Final = ",;\t|"
# How Excel is told of the delimiter, in a line before the header.
_SEPARATOR: Final = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
_WINDOW: Final = 64
_GUESSED_LINES: Final = 1000

_Found = tuple[int, str, Row]  # number of the row, path, row


def open_table(path: Path, choice: Choice, address: str = "") -> Source:
    """The images that a table names, by paths from its folder, absolute paths or addresses.

    Of a table that was downloaded, they are addresses, or paths from its `address`.
    """
    title = printable(without_secrets(address) if address else as_text(str(path)))
    name = path.name.lower()
    rows = _rows_of_list if name.endswith(LIST_SUFFIXES) else _rows_of_csv
    rows = _rows_of_json if name.endswith(JSON_SUFFIXES) else rows
    table = _Table(path, title, partial(rows, path, title), choice, address)
    place = printable(as_text(str(path.resolve())))

    def named(name: str) -> Source:
        return Source(
            title,
            table.total,
            lambda: table.items(name, None),
            table.about,
            tuple(table.splits),
            table.skipped,
            lambda positions: table.items(name, positions),
            origin=Origin(name, place, named),
            videos=table.videos,
        )

    return named(path.stem)


class _Table:
    """What reading a table once tells; its rows are read again for the images."""

    def __init__(
        self,
        path: Path,
        title: str,
        rows: Callable[[], Iterator[Row]],
        choice: Choice,
        address: str,
    ) -> None:
        self._address = address
        self._path = path
        self._title = title
        self._rows: Callable[[], Iterator[Row]] = lambda: map(_with_known_names, rows())
        self._label_from = choice.label_from
        self.skipped = Skipped()
        first = next(self._rows(), None)
        if first is None:
            raise SourceError(f"{title} has no rows")
        self._column = _path_column(title, first)
        self._columns = Columns({self._column})
        self.splits = sorted({split for row in self._rows() if (split := _split(row))})
        self._split = matching_split(title, self.splits, choice)
        labels: Counter[str | None] = Counter()
        videos = []
        for position, (_, name, row) in enumerate(self._found(self.skipped)):
            if _is_video(name):
                videos.append(position)
            self._columns.learn(row)
            labels[_label(row, name, self._label_from)] += 1
        self.videos = frozenset(videos)
        self.total = labels.total()
        if not self.total:
            raise SourceError(f"{title} names no images in its column {self._column}")
        rule = "column label" if self._label_from == "auto" else self._label_from
        self.about = describe(rule, labels, self.splits)
        if self._columns.names:
            self.about += f"; metadata: {', '.join(map(printable, self._columns.names))}"
        if self._columns.left_out:
            left_out = ", ".join(map(printable, sorted(self._columns.left_out)))
            self.about += f"; columns left out, as they hold no simple values: {left_out}"

    def items(self, name: str, positions: Collection[int] | None) -> Iterator[Item]:
        """All, or those at these positions; addresses are fetched a few at once."""
        found: Iterator[_Found] = self._found(Skipped())
        if positions is not None:
            stop = max(positions, default=-1) + 1
            found = (one for n, one in enumerate(islice(found, stop)) if n in positions)
        with (
            damage_named(self._path),
            closing(Remote()) as remote,
            ThreadPoolExecutor(AT_ONCE) as pool,
        ):
            while window := list(islice(found, _WINDOW)):
                contents = pool.map(lambda one: self._read(one[1], remote), window)
                for (_, path, row), content in zip(window, contents, strict=True):
                    if content is not None:
                        yield self._item(name, path, row, content)
                        continue
                    with self._video(path, remote) as video:
                        yield self._item(name, path, row, video)

    def _item(self, name: str, path: str, row: Row, content: Content) -> Item:
        shown = composed(as_text(path))
        metadata = {"source": name, "path": shown, **self._columns.metadata(row)}
        id_ = id_of(file_bytes(composed(f"{name}/{path.removeprefix('./').lstrip('/')}")))
        label = _label(row, path, self._label_from)
        changed = None if self._address or is_remote(path) else modified(self._path.parent / path)
        return Item(id_, label, content, metadata, modified=changed)

    def _read(self, path: str, remote: Remote) -> bytes | ImageError | None:
        """None for a video, which is not read ahead."""
        if _is_video(path):
            return None
        try:
            place = self._place(path)
        except ImageError as exc:
            return exc
        if isinstance(place, str):
            return remote.fetch(place)
        return read_bounded(partial(open_file, place))

    def _video(self, path: str, remote: Remote) -> AbstractContextManager[Content]:
        def open_() -> BinaryIO:
            place = self._place(path)
            return remote.fetch_file(place) if isinstance(place, str) else open_file(place)

        return reading(open_, is_video=True, on_disk=True)

    def _place(self, path: str) -> str | Path:
        """The address or path of what a row names; raises ImageError where it has none."""
        if self._address:
            # What a stranger's list names is never read from this machine.
            path = urljoin(self._address, path)
            if not is_remote(path):
                raise ImageError("it is neither an http address nor a path from one")
        return path if is_remote(path) else self._path.parent / path

    def _with_slashes(self, path: str) -> str:
        """A path as Windows writes it, unless a file is called so."""
        is_name = not self._address and "\0" not in path and (self._path.parent / path).exists()
        return path if is_name else path.replace("\\", "/")

    def _found(self, skipped: Skipped) -> Iterator[_Found]:
        """The rows that name an image, each image once, and of the split that was chosen."""
        seen: set[int] = set()
        for number, row in enumerate(self._rows()):
            if self._split and not self._split(_split(row)):
                continue
            path = row.get(self._column)
            if isinstance(path, str) and "\\" in path and not is_remote(path):
                path = self._with_slashes(path)
            if not isinstance(path, str) or not path or "\0" in path:
                skipped.add(Kind.NO_PATH, f"row {number + 1}")
            elif hash(path) in seen:
                skipped.add(Kind.REPEATED, printable(path))
            else:
                seen.add(hash(path))
                yield number, path, row


def _with_known_names(row: Row) -> Row:
    """The row with `label` and `split`, whatever their case."""
    names = {name: name.lower() if name.lower() in _KNOWN else name for name in row}
    return {name if names[name] in row else names[name]: value for name, value in row.items()}


def _is_video(path: str) -> bool:
    return is_video(urlsplit(path).path if is_remote(path) else path)


def _path_column(title: str, row: Row) -> str:
    for column in PATH_COLUMNS:
        for name in row:
            if name.lower() == column:
                return name
    raise SourceError(
        f"{title} has no column that names images: call it path, or one of "
        f"{', '.join(PATH_COLUMNS[1:])}. It has {', '.join(map(printable, row)) or 'none'}"
    )


def _split(row: Row) -> str | None:
    split = row.get("split")
    return split if isinstance(split, str) and split else None


def _label(row: Row, path: str, label_from: LabelFrom) -> str | None:
    folders = [] if is_remote(path) else path.removeprefix("./").strip("/").split("/")[:-1]
    if label_from == "auto":
        value = row.get(LABEL_FIELD)
        return None if value is None or value == "" else composed(_text_of(value))
    if label_from == "none" or not folders:
        return None
    return composed(as_text(folders[0] if label_from == "top" else folders[-1]))


def _text_of(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- rows -----------------------------------------------------------------------------------------


def _rows_of_csv(path: Path, title: str) -> Iterator[Row]:
    encoding = _encoding(path)
    with damage_named(path), path.open(encoding=encoding, errors="replace", newline="") as file:
        header, start = file.readline(), 0
        told = _SEPARATOR.fullmatch(header.rstrip("\r\n"))
        if told:
            start = file.tell()
            header = file.readline()
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(_DELIMITERS, key=header.count)
        file.seek(start)
        reader = csv.DictReader(file, delimiter=told[1] if told else delimiter)
        try:
            for row in reader:
                # What has more values than the header has names is under None.
                yield {
                    name: value if name.lower() in _AS_TEXT else parsed(value)
                    for name, value in row.items()
                    if name is not None and value is not None
                }
        except csv.Error as exc:
            raise SourceError(f"{title}, line {reader.line_num}: {exc}") from exc


# Of these, digits are names.
_AS_TEXT: Final = {*PATH_COLUMNS, LABEL_FIELD, "split"}


def _rows_of_list(path: Path, _title: str) -> Iterator[Row]:
    """A path or address a line; lines that begin with # are comments."""
    encoding = _encoding(path)
    with damage_named(path), path.open(encoding=encoding, errors="replace") as file:
        for line in file:
            if (name := line.strip()) and not name.startswith("#"):
                yield {PATH_COLUMNS[0]: name}


def _rows_of_json(path: Path, title: str) -> Iterator[Row]:
    encoding = _encoding(path)
    with damage_named(path), path.open(encoding=encoding, errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _object(line, f"{title}, line {number}")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise SourceError(f"{where}: no JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise SourceError(f"{where}: expected a JSON object, as in {{'path': 'a.jpg'}}")
    return value


def _encoding(path: Path) -> str:
    """UTF-8, or what the file looks like; spreadsheets on Windows write others."""
    with path.open("rb") as file:
        start = file.read(2)
        if start in {b"\xff\xfe", b"\xfe\xff"}:
            return "utf-16"
        file.seek(0, os.SEEK_SET)
        odd = []
        for line in file:
            if not line.isascii() and not _is_utf_8(line):
                odd.append(line)
                if len(odd) == _GUESSED_LINES:
                    break
    return legacy_encoding(odd) if odd else "utf-8-sig"


def _is_utf_8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
