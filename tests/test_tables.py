"""CSV files and JSON lines: paths, addresses, labels, and columns as typed metadata."""

import csv
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from image_search.errors import ImageError, SourceError
from tests.support.sources import items, opened
from worker.sources import remote
from worker.sources.skipped import Kind

Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    """The rows as what the suffix says; and the images that they name, if they are here."""
    if path.suffix in {".csv", ".tsv"}:
        with path.open("w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(
                file,
                list(dict.fromkeys(key for row in rows for key in row)),
                delimiter="\t" if path.suffix == ".tsv" else delimiter,
            )
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding=encoding)
    for row in rows:
        name = row.get("path")
        if isinstance(name, str) and name and "://" not in name:
            image = path.parent / name
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(name.encode())
    return path


SUFFIXES = ["csv", "tsv", "jsonl", "ndjson"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_of_images(tmp_path: Path, suffix: str) -> None:
    absolute = tmp_path / "elsewhere" / "c d.jpg"
    path = write(
        tmp_path / f"shop.{suffix}",
        [
            {"path": "img/a.jpg", "label": "shoe", "price": 12, "brand": "Käse", "sold": True},
            {"path": "./img/b.jpg", "label": "hat", "price": 9.5, "brand": "犬", "sold": False},
            {"path": str(absolute), "label": "", "price": 3, "brand": "", "sold": True},
        ],
    )
    source = opened(path)
    found = items(source)
    prefix = str(absolute).lstrip("/").replace(" ", " ")
    assert {id_: item.label for id_, item in found.items()} == {
        "shop/img/a.jpg": "shoe",
        "shop/img/b.jpg": "hat",
        f"shop/{prefix}": None,
    }
    assert found["shop/img/a.jpg"].content == b"img/a.jpg"
    assert found["shop/img/b.jpg"].content == b"./img/b.jpg"
    assert found["shop/img/a.jpg"].metadata == {
        "source": "shop",
        "path": "img/a.jpg",
        "price": 12.0,
        "brand": "Käse",
        "sold": True,
    }
    metadata = found[f"shop/{prefix}"].metadata
    assert metadata == {"source": "shop", "path": str(absolute), "price": 3.0, "sold": True}
    assert isinstance(metadata["price"], float)
    assert source.about == (
        "labels: column label; 2 found: hat (1), shoe (1); 1 images have none; "
        "metadata: brand, price, sold"
    )


def test_types_of_columns(tmp_path: Path) -> None:
    values = {
        "whole": ["1", "-2", "30"],
        "number": ["1", "2.5", "-3e2"],
        "zip": ["01234", "98765", "00000"],
        "mixed": ["1", "two", "3.5"],
        "flag": ["true", "False", "TRUE"],
        "flag_or_text": ["true", "no", "1"],
        "huge": ["123456789012345678901", "1", "2"],
        "nan": ["nan", "inf", "1"],
    }
    rows = [
        {"path": f"{n}.jpg", **{name: column[n] for name, column in values.items()}}
        for n in range(3)
    ]
    found = list(items(opened(write(tmp_path / "t.csv", rows))).values())
    columns = {name: [item.metadata[name] for item in found] for name in values}
    assert columns == {
        "whole": [1, -2, 30],
        "number": [1.0, 2.5, -300.0],
        "zip": ["01234", "98765", "00000"],
        "mixed": ["1", "two", "3.5"],
        "flag": [True, False, True],
        "flag_or_text": ["true", "no", "1"],
        "huge": [1.2345678901234568e20, 1.0, 2.0],
        "nan": ["nan", "inf", "1"],
    }
    assert all(len({type(value) for value in column}) == 1 for column in columns.values())


def test_json_values(tmp_path: Path) -> None:
    rows = [
        {"path": "a.jpg", "label": 7, "tags": ["x", "y"], "n": None, "deep": {"a": 1}, "$x": 1},
        {"path": "b.jpg", "label": True, "tags": [], "n": 4, "huge": 2**70},
    ]
    source = opened(write(tmp_path / "t.jsonl", rows))
    found = items(source)
    assert [item.label for item in found.values()] == ["7", "true"]
    assert found["t/a.jpg"].metadata == {"source": "t", "path": "a.jpg", "tags": ["x", "y"]}
    assert found["t/b.jpg"].metadata == {"source": "t", "path": "b.jpg", "tags": [], "n": 4}
    assert source.about.endswith("columns left out, as they hold no simple values: $x, deep, huge")


@pytest.mark.parametrize("delimiter", list(",;|\t"))
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_what_spreadsheets_write(tmp_path: Path, delimiter: str, encoding: str) -> None:
    rows = [{"path": "a.jpg", "label": "Käse", "note": 'one, "two"; three|\tfour\nfive'}]
    [item] = opened(write(tmp_path / "t.csv", rows, delimiter, encoding)).items()
    assert (item.label, item.metadata["note"]) == ("Käse", rows[0]["note"])


def test_tables_of_windows(tmp_path: Path) -> None:
    folder = tmp_path / "img"
    folder.mkdir()
    for name in ("a.jpg", "back\\slash.jpg"):
        (folder / name).write_bytes(name.encode())
    path = tmp_path / "t.csv"
    path.write_bytes(
        b"sep=|\r\nPath|Label|SPLIT|Text\r\nimg\\a.jpg|cat|train|1;2,3\r\n"
        b"img/back\\slash.jpg|dog|val|4\r\n"
    )
    source = opened(path)
    found = items(source)
    assert {id_: (item.label, item.content) for id_, item in found.items()} == {
        "t/img/a.jpg": ("cat", b"a.jpg"),
        "t/img/back%5Cslash.jpg": ("dog", b"back\\slash.jpg"),
    }
    assert set(source.splits) == {"train", "val"}
    assert found["t/img/a.jpg"].metadata["Text"] == "1;2,3"


def test_a_line_that_looks_like_a_separator_is_a_header_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("sep=;;path\n1;2;a.jpg\n")
    [item] = opened(path).items()
    assert item.metadata["path"] == "a.jpg"


@pytest.mark.parametrize("column", ["path", "Path", "file_name", "image", "url", "FILENAME"])
def test_names_of_the_column(tmp_path: Path, column: str) -> None:
    source = opened(write(tmp_path / "t.csv", [{"label": "x", column: "a.jpg"}]))
    (tmp_path / "a.jpg").write_bytes(b"1")
    [item] = source.items()
    assert (item.content, item.metadata) == (b"1", {"source": "t", "path": "a.jpg"})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_without_an_image(tmp_path: Path, suffix: str) -> None:
    names = ["a.jpg", "", "b.jpg", "a.jpg", "gone.jpg"]
    path = write(tmp_path / f"t.{suffix}", [{"path": name, "label": "x"} for name in names])
    (tmp_path / "gone.jpg").unlink()
    source = opened(path)
    found = items(source)
    assert list(found) == ["t/a.jpg", "t/b.jpg", "t/gone.jpg"]
    assert isinstance(found["t/gone.jpg"].content, ImageError)
    assert source.skipped.counts == {Kind.NO_PATH: 1, Kind.REPEATED: 1}
    assert source.skipped.lost == 2
    assert "row 2" in "".join(source.skipped.lines())


@pytest.mark.slow
def test_splits_labels_and_picking(tmp_path: Path) -> None:
    rows = [
        {"path": f"{kind}/old/{n}.jpg", "label": f"{kind}s", "split": split}
        for kind in ("cat", "dog")
        for n, split in enumerate(["train", "train", "validation"])
    ]
    path = write(tmp_path / "t.csv", rows)
    source = opened(path)
    assert source.splits == ("train", "validation")
    assert source.total == 6
    chosen = opened(path, split="val")
    assert list(items(chosen)) == ["t/cat/old/2.jpg", "t/dog/old/2.jpg"]
    assert [item.id for item in source.pick({1, 4})] == ["t/cat/old/1.jpg", "t/dog/old/1.jpg"]
    assert len(list(source.limited(3).items())) == 3
    labels = {
        label_from: {item.label for item in opened(path, label_from=label_from).items()}
        for label_from in ("auto", "top", "parent", "none")
    }
    assert labels == {
        "auto": {"cats", "dogs"},
        "top": {"cat", "dog"},
        "parent": {"old"},
        "none": {None},
    }
    with pytest.raises(SourceError, match="no split test: its splits are train, validation"):
        opened(path, split="test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "no rows"),
        ("t.csv", "path,label\n", "no rows"),
        ("t.csv", "title,label\nx,y\n", r"no column that names images.*It has title, label"),
        ("t.csv", 'path\n""\n', "names no images"),
        ("t.jsonl", "", "no rows"),
        ("t.jsonl", '{"path": "a.jpg"}\n{"path": \n', "line 2: no JSON"),
        ("t.jsonl", '["a.jpg"]\n', "line 1: expected a JSON object"),
        ("t.jsonl", '{"path": 3}\n', "names no images"),
        ("t.jsonl", "[" * 100_000, "line 1: no JSON"),
        ("t.csv", 'path,x\na.jpg,"' + "x" * 200_000 + '"\n', "line"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=message):
        opened(tmp_path / name)


# --- addresses ------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        if self.path.startswith("/busy") and self.asked[self.path] < 3:
            self.send_error(503)
        elif self.path.startswith("/missing"):
            self.send_error(404)
        elif self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/there.jpg")
            self.end_headers()
        elif self.path.startswith("/cut"):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"short")
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.slow
def test_addresses_are_fetched(
    tmp_path: Path, server: str, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.001)
    names = ["a.jpg", "b.jpg?x=1&y=é", "busy.jpg", "moved.jpg", "missing.jpg", "cut.jpg"]
    urls = [f"{server}/{name}" for name in names] + [f"http://127.0.0.1:{free_port}/no.jpg"]
    path = write(tmp_path / "t.jsonl", [{"path": url, "label": "x"} for url in urls])
    (tmp_path / "local.jpg").write_bytes(b"local")
    with path.open("a") as file:
        print(json.dumps({"path": "local.jpg"}), file=file)
    contents = {str(item.metadata["path"]): item.content for item in opened(path).items()}
    assert [contents[url] for url in urls[:4]] == [
        b"/a.jpg",
        b"/b.jpg?x=1&y=%C3%A9",
        b"/busy.jpg",
        b"/there.jpg",
    ]
    reasons = [str(contents[url]) for url in urls[4:]]
    assert "status 404" in reasons[0]
    assert "cannot be reached" in reasons[1]
    assert "cannot be reached" in reasons[2]
    assert contents["local.jpg"] == b"local"
    assert Handler.asked["/busy.jpg"] == 3
    assert Handler.asked["/missing.jpg"] == 1


@pytest.mark.slow
def test_an_address_that_gives_too_much(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_MAX_BYTES", 10)
    path = write(tmp_path / "t.csv", [{"path": f"{server}/{'x' * 50}.jpg"}])
    [item] = opened(path).items()
    assert "more than 10 bytes" in str(item.content)


@pytest.mark.slow
def test_ids_of_addresses_are_stable(tmp_path: Path, server: str) -> None:
    path = write(tmp_path / "t.csv", [{"path": f"{server}/a b.jpg"}])
    [first], [second] = opened(path).items(), opened(path).items()
    assert first.id == second.id
    assert first.id.startswith("t/http%3A//127.0.0.1")
