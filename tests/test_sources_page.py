"""docs/reference/sources.md against the code: each source of its table is made, and opened."""

import io
import json
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from image_search.values import DIGEST_FIELD
from tests.support import ROOT
from tests.support.images import png
from worker.sources import Source, open_source
from worker.sources.sample import KINDS

CLASSES: Final = ("cat", "dog")
PAGE: Final = (ROOT / "docs" / "reference" / "sources.md").read_text()
# The columns of tables that are made here.
COLUMNS: Final = {"price"}


def table() -> dict[str, dict[str, str]]:
    """The rows of the page's table by each name of a SOURCE that they give."""
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {
        source: dict(zip(header, row, strict=True))
        for row in rows
        for source in re.findall(r"`([^`]+)`", row[0])
    }


ROWS: Final = table()


def write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def folder(path: Path) -> None:
    for number, (split, label) in enumerate(
        (split, label) for split in ("train", "test") for label in CLASSES
    ):
        write(path / split / label / f"{number}.jpg", png(number))


def archive(path: Path) -> None:
    folder(path.parent / "made" / "photos")
    kind = "zip" if path.suffix == ".zip" else "gztar"
    shutil.make_archive(str(path.parent / "photos"), kind, path.parent / "made")


def cifar10(path: Path) -> None:
    python = "py" in path.name
    made = path.parent / "made" / "cifar10"
    pixels = np.zeros((2, 3072), np.uint8)
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    for name in names:
        if python:
            batch = {b"labels": [0, 1], b"data": pixels}
            write(made / name, pickle.dumps(batch, protocol=2))
        else:
            records = b"".join(bytes([n]) + pixels[n].tobytes() for n in range(2))
            write(made / f"{name}.bin", records)
    if python:
        write(made / "batches.meta", pickle.dumps({b"label_names": [b"cat", b"dog"]}, protocol=2))
    else:
        write(made / "batches.meta.txt", b"cat\ndog\n")
    if path.suffix == ".gz":
        shutil.make_archive(str(path.with_suffix("").with_suffix("")), "gztar", made.parent)
    else:
        made.rename(path)


def csv(path: Path) -> None:
    write(path.parent / "img" / "1.jpg", png(1))
    path.write_text("path,label,price\nimg/1.jpg,cat,2\n")


def json_lines(path: Path) -> None:
    write(path.parent / "img" / "1.jpg", png(1))
    path.write_text(json.dumps({"path": "img/1.jpg", "label": "cat", "price": 2}) + "\n")


def listed(path: Path) -> None:
    write(path.parent / "img" / "1.jpg", png(1))
    path.write_text("img/1.jpg\n")


def parquet(path: Path) -> None:
    count = 43
    rows = [{"bytes": png(1), "path": "a.jpg"}] * count
    columns: dict[str, Any] = {"image": rows, "label": ["cat"] * count, "price": [2] * count}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def shard(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        fields = json.dumps({"label": "cat", "price": 2}).encode()
        for name, content in {"jpg": png(1), "json": fields, "txt": b"a caption"}.items():
            member = tarfile.TarInfo(f"0001.{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


MAKERS: Final[dict[str, Callable[[Path], object]]] = {
    "cifar10": lambda _: None,
    "cifar-10-binary.tar.gz": cifar10,
    "cifar-10-batches-bin": cifar10,
    "cifar-10-python.tar.gz": cifar10,
    "cifar-10-batches-py": cifar10,
    "sample": lambda _: None,
    "photos": folder,
    "photos/cat/1.jpg": lambda path: write(path, png(1)),
    "photos.zip": archive,
    "photos.tar.gz": archive,
    "shop.csv": csv,
    "shop.jsonl": json_lines,
    "train.parquet": parquet,
    "beans": lambda path: parquet(path / "data" / "train-00000-of-00001.parquet"),
    "pets-0000.tar": shard,
    "urls.txt": listed,
    "s3://my-bucket/photos": lambda _: None,
    "gs://my-bucket/photos": lambda _: None,
    "https://example.org/photos.zip": lambda _: None,
    "pets": lambda path: shard(path / "train-0000.tar"),
}


def test_the_page_has_all_kinds_that_are_tried_here() -> None:
    assert ROWS.keys() == MAKERS.keys()


# They are in the table, and tried in test_buckets.py.
ELSEWHERE: Final = {"cifar10", *(name for name in MAKERS if "://" in name)}


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ELSEWHERE])
def test_a_source_of_the_page(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path / name)
    path = name if name == "sample" else str(tmp_path / name)
    source = open_source(path, data_dir=tmp_path)
    row = ROWS[name]
    documented = set(re.findall(r"`(\w+)`", row["Metadata"]))
    if re.search(r"columns|fields", row["Metadata"]):
        documented |= COLUMNS
    items = list(source.items()) if name != "sample" else list(source.pick({0, 107}))
    assert {field for item in items for field in item.metadata} <= documented
    assert DIGEST_FIELD in PAGE
    [example] = re.findall(r"`([^`]+)`", row["Ids"])
    assert _shape(example) in {_shape(item.id) for item in items}
    labels = {item.label for item in items}
    if row["Labels"] == "none":
        assert labels == {None}
    elif name == "sample":
        assert labels <= set(KINDS)
    else:
        assert labels <= {*CLASSES}
        assert "cat" in labels


def _shape(id_: str) -> str:
    """An id without what differs from image to image."""
    id_ = re.sub(r"\d+", lambda match: "0" * len(match[0]), id_)
    return re.sub(r"^(photos/)((train|test)/)?", r"\1", re.sub("|".join(KINDS), "KIND", id_))


def test_splits_and_choices_of_the_page(tmp_path: Path) -> None:
    folder(tmp_path / "photos")
    source: Source = open_source(str(tmp_path / "photos"), split="test", data_dir=tmp_path)
    assert {item.metadata["split"] for item in source.items()} == {"test"}
    for word in ("top", "parent", "none", "train", "val", "test", "validation", "dev", "holdout"):
        assert f"`{word}`" in PAGE
