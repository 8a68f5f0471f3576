"""Parquet files as data sets at Hugging Face have them, and as others write them."""

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from image_search.errors import ImageError, SourceError
from tests.support.sources import items, opened
from worker.sources.skipped import Kind

CLASSES = ["cat", "Ka\u0308se"]
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": CLASSES, "_type": "ClassLabel"},
}


def write(
    path: Path,
    columns: dict[str, Any],
    features: dict[str, Any] | None = None,
    *,
    rows_in_group: int = 3,
) -> Path:
    table = pa.table(columns)
    if features is not None:
        stored = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": stored})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_in_group)
    return path


def images(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"bytes": b"image %d" % n, "path": f"{n}.jpg"} for n in range(start, start + count)]


def test_a_file_with_classes(tmp_path: Path) -> None:
    path = write(
        tmp_path / "train-00000-of-00001.parquet",
        {"image": images(7), "label": [0, 1, 0, 1, -1, 0, None]},
        FEATURES,
    )
    source = opened(path)
    found = items(source)
    assert list(found) == [f"train-00000-of-00001/{n:06d}" for n in range(7)]
    labels = ["cat", "Käse", "cat", "Käse", None, "cat", None]
    assert [item.label for item in found.values()] == labels
    assert [item.content for item in found.values()] == [b"image %d" % n for n in range(7)]
    assert found["train-00000-of-00001/000002"].metadata == {
        "source": "train-00000-of-00001",
        "path": "2.jpg",
        "split": "train",
    }
    assert source.about == (
        "labels: column label; 2 found: Käse (2), cat (3); 2 images have none; splits: train"
    )
    assert [item.label for item in opened(path, label_from="none").items()] == [None] * 7


@pytest.mark.parametrize(
    "names",
    [
        [
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/test-00000-of-00001.parquet",
        ],
        ["plain/train/0000.parquet", "plain/train/0001.parquet", "plain/test/0000.parquet"],
    ],
)
def test_a_folder_of_files(tmp_path: Path, names: list[str]) -> None:
    folder = tmp_path / "pets"
    for number, name in enumerate(names):
        write(folder / name, {"image": images(4, 4 * number), "label": [0, 1, 0, 1]}, FEATURES)
    (folder / "README.md").write_text("# pets")
    (folder / ".cache").mkdir()
    source = opened(folder)
    found = items(source)
    stems = sorted(name.removesuffix(".parquet") for name in names)
    assert list(found) == [f"pets/{stem}/{n:06d}" for stem in stems for n in range(4)]
    assert source.splits == ("test", "train")
    assert source.skipped.counts == {Kind.NOT_IMAGE: 1, Kind.HIDDEN: 1}
    train = opened(folder, split="train")
    assert train.total == 8
    assert {item.metadata["split"] for item in train.items()} == {"train"}
    assert [item.id for item in source.pick({1, 6, 11})] == [list(found)[n] for n in (1, 6, 11)]
    assert list(source.pick({99})) == []
    limited = [item.id for item in source.limited(5).items()]
    assert len(limited) == 5
    assert set(limited) < set(found)


def test_a_folder_of_images_beside_parquet_files(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    write(folder / "a.parquet", {"image": images(1)})
    (folder / "a.png").write_bytes(b"image")
    source = opened(folder)
    assert list(items(source)) == ["mixed/a.png"]
    assert source.skipped.counts == {Kind.ARCHIVE: 1}


def test_columns_become_metadata(tmp_path: Path) -> None:
    day = datetime.datetime(2024, 5, 6, 7, 8, tzinfo=datetime.UTC)
    path = write(
        tmp_path / "x.parquet",
        {
            "img": pa.array([b"a", b"b"], pa.binary()),
            "price": [1.5, float("nan")],
            "count": pa.array([1, None], pa.int32()),
            "big": pa.array([2**64 - 1, 1], pa.uint64()),
            "sold": [True, False],
            "title": ["", "Käse"],
            "tags": [["x", "y"], []],
            "taken": [day, None],
            "kind": pa.array(["p", "q"]).dictionary_encode(),
            "deep": [{"a": 1}, {"a": 2}],
            "raw": [b"1", b"2"],
            "$odd": [1, 2],
            "thumbnail": ["a", "b"],
        },
    )
    first, second = items(opened(path)).values()
    assert first.metadata == {
        "source": "x",
        "price": 1.5,
        "count": 1,
        "big": float(2**64 - 1),
        "sold": True,
        "tags": ["x", "y"],
        "taken": day.isoformat(),
        "kind": "p",
    }
    assert second.metadata == {
        "source": "x",
        "big": 1,
        "sold": False,
        "title": "Käse",
        "tags": [],
        "kind": "q",
    }


def test_labels_of_text_and_numbers(tmp_path: Path) -> None:
    for column, values, labels in [
        ("label", ["a", ""], ["a", None]),
        ("labels", [3, 4], ["3", "4"]),
        ("fine_label", [0, 1], ["cat", "Käse"]),
        ("other", [0, 1], ["cat", "Käse"]),
    ]:
        features = {column: FEATURES["label"]} if column in {"fine_label", "other"} else None
        path = write(tmp_path / f"{column}.parquet", {"image": images(2), column: values}, features)
        assert [item.label for item in opened(path).items()] == labels


def test_the_only_column_of_bytes_has_the_images(tmp_path: Path) -> None:
    columns = {"image.bytes": [b"one", b"two"], "image.path": ["a", "b"], "label": ["x", "y"]}
    found = list(opened(write(tmp_path / "flat.parquet", columns)).items())
    assert [(item.content, item.label) for item in found] == [(b"one", "x"), (b"two", "y")]
    for more in ({"other": [b"x", b"y"]}, {"thumbnail": [b"x", b"y"]}):
        path = write(tmp_path / f"{min(more)}.parquet", {**columns, **more})
        if "thumbnail" in more:
            assert [item.content for item in opened(path).items()] == [b"one", b"two"]
        else:
            with pytest.raises(SourceError, match="no column of images"):
                opened(path)


def test_rows_without_an_image_are_told(tmp_path: Path) -> None:
    rows = [{"bytes": None, "path": "a.jpg"}, {"bytes": b"x", "path": None}, None]
    source = opened(write(tmp_path / "x.parquet", {"image": rows}))
    contents = [item.content for item in source.items()]
    assert isinstance(contents[0], ImageError)
    assert contents[1] == b"x"
    assert isinstance(contents[2], ImageError)


@pytest.mark.long
def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"text": ["a"], "number": [1]})
    with pytest.raises(SourceError, match="no column of images: its columns are text, number"):
        opened(path)
    path = write(tmp_path / "y.parquet", {"image": images(100), "label": list(range(100))})
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match="damaged"):
            opened(path)
    for position in range(4, len(whole), 41):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            list(opened(path).items())
        except SourceError:
            continue
