"""Labels and splits from folders: the same rule for folders, zips and tars."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from image_search.errors import SourceError
from worker.sources import Source, Split, open_source

# By layout: of each path, label and split. Names of the source are none of these.
LAYOUTS: Final[dict[str, dict[str, tuple[str | None, str | None]]]] = {
    "flat": {"a.png": (None, None), "b.png": (None, None)},
    "classes": {"cat/a.png": ("cat", None), "dog/b.png": ("dog", None)},
    "one class": {"cat/a.png": ("cat", None), "cat/b.png": ("cat", None)},
    "one class with folders in it": {
        "cat/a.png": ("cat", None),
        "cat/b.png": ("cat", None),
        "cat/old/c.png": ("cat", None),
    },
    "classes with folders in them": {
        "cat/2019/a.png": ("cat", None),
        "cat/2020/summer/b.png": ("cat", None),
        "dog/c.png": ("dog", None),
    },
    "wrapper": {"animals/cat/a.png": ("cat", None), "animals/dog/b.png": ("dog", None)},
    "wrappers": {"a/b/c/cat/a.png": ("cat", None), "a/b/c/dog/b.png": ("dog", None)},
    "wrapper with a loose image": {
        "animals/overview.png": (None, None),
        "animals/cat/a.png": ("cat", None),
        "animals/dog/b.png": ("dog", None),
    },
    "splits": {
        "train/cat/a.png": ("cat", "train"),
        "train/dog/b.png": ("dog", "train"),
        "test/cat/c.png": ("cat", "test"),
    },
    "wrapper and splits": {
        "cifar10/train/cat/a.png": ("cat", "train"),
        "cifar10/test/dog/b.png": ("dog", "test"),
    },
    "splits with wrappers": {
        "training_set/training_set/cats/a.png": ("cats", "training_set"),
        "training_set/training_set/dogs/b.png": ("dogs", "training_set"),
        "test_set/test_set/cats/c.png": ("cats", "test_set"),
        "test_set/test_set/dogs/d.png": ("dogs", "test_set"),
    },
    "one split": {"Train/cat/a.png": ("cat", "train"), "Train/dog/b.png": ("dog", "train")},
    "splits of images without labels": {
        "train/a.png": (None, "train"),
        "valid/b.png": (None, "valid"),
    },
    "a split whose labels nobody knows": {
        "train/cat/a.png": ("cat", "train"),
        "train/dog/b.png": ("dog", "train"),
        "test/images/c.png": (None, "test"),
    },
    "three splits, one small": {
        "train/cat/a.png": ("cat", "train"),
        "train/dog/b.png": ("dog", "train"),
        "val2017/dog/c.png": ("dog", "val2017"),
        "dev/cat/d.png": ("cat", "dev"),
    },
    "splits beside a loose image": {
        "overview.png": (None, None),
        "train/cat/a.png": ("cat", "train"),
        "test/cat/b.png": ("cat", "test"),
    },
    "splits in the classes": {
        "cat/train/a.png": ("cat", "train"),
        "cat/test/b.png": ("cat", "test"),
        "dog/train/c.png": ("dog", "train"),
    },
    "a class called train": {
        "plane/a.png": ("plane", None),
        "ship/b.png": ("ship", None),
        "train/c.png": ("train", None),
    },
    "one folder of images": {"images/a.png": (None, None), "images/old/b.png": (None, None)},
    "a class beside images": {"images/a.png": ("images", None), "cats/b.png": ("cats", None)},
    "images and labels of YOLO": {
        "train/images/a.png": (None, "train"),
        "valid/images/b.png": (None, "valid"),
    },
    "hidden folders and those of systems": {
        "animals/cat/a.png": ("cat", None),
        "animals/dog/b.png": ("dog", None),
    },
}
JUNK: Final = {
    "hidden folders and those of systems": (
        *("__MACOSX/animals/cat/._a.png", ".git/x.png", "$RECYCLE.BIN/x.png", "#recycle/y.png"),
        "animals/cat/@eaDir/a.png/SYNOFILE_THUMB_M.jpg",
    ),
    "images and labels of YOLO": ("train/labels/a.txt", "valid/labels/b.txt", "data.yaml"),
}

Packer = Callable[[Path], Path]


def packed(folder: Path, kind: str, name: str) -> Path:
    if kind == "folder":
        return folder
    return Path(shutil.make_archive(str(folder.parent / "packed" / name), kind, folder))


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    return folder


def found(source: Source) -> dict[str, tuple[str | None, str | None]]:
    return {
        str(item.metadata["path"]): (item.label, item.metadata.get("split"))  # type: ignore[misc]
        for item in source.items()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_labels_and_splits(tmp_path: Path, layout: str, kind: str) -> None:
    folder = tree(tmp_path / "source", *LAYOUTS[layout], *JUNK.get(layout, ()))
    for name in ("archive", "animals (1)"):
        path = packed(folder, kind, name)
        assert found(open_source(str(path), data_dir=tmp_path)) == LAYOUTS[layout]


def test_a_line_says_which_rule_was_taken(tmp_path: Path) -> None:
    source = open_source(
        str(tree(tmp_path / "x", *LAYOUTS["wrapper and splits"])), data_dir=tmp_path
    )
    assert source.about == (
        "labels: LABEL in cifar10/SPLIT/LABEL/…; 2 found: cat (1), dog (1); splits: test, train"
    )
    flat = open_source(str(tree(tmp_path / "y", "a.png")), data_dir=tmp_path)
    assert flat.about == "labels: none"
    many = tree(tmp_path / "z", *(f"{n:02d}/a.png" for n in range(12)), "loose.png")
    about = open_source(str(many), data_dir=tmp_path).about
    assert "12 found: 00 (1), 01 (1)" in about
    assert "and 2 more; 1 images have none" in about


@pytest.mark.parametrize(
    ("split", "layout", "paths"),
    [
        ("train", "splits", {"train/cat/a.png", "train/dog/b.png"}),
        ("test", "wrapper and splits", {"cifar10/test/dog/b.png"}),
        ("val", "splits of images without labels", {"valid/b.png"}),
        ("val", "three splits, one small", {"val2017/dog/c.png", "dev/cat/d.png"}),
        ("test", "splits in the classes", {"cat/test/b.png"}),
    ],
)
def test_a_split_is_chosen(tmp_path: Path, split: Split, layout: str, paths: set[str]) -> None:
    folder = tree(tmp_path / "source", *LAYOUTS[layout])
    source = open_source(str(folder), split=split, data_dir=tmp_path)
    assert set(found(source)) == paths
    assert source.total == len(paths)
    assert [item.metadata["path"] for item in source.pick({0})] == [min(paths)]
    # An image has the same id, whatever is chosen.
    everything = {
        item.metadata["path"]: item.id
        for item in open_source(str(folder), data_dir=tmp_path).items()
    }
    assert all(everything[item.metadata["path"]] == item.id for item in source.items())


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    folder = tree(tmp_path / "source", *LAYOUTS["splits"])
    with pytest.raises(SourceError, match="no split val: its splits are test, train"):
        open_source(str(folder), split="val", data_dir=tmp_path)


def test_images_to_search_for_are_those_of_the_test_split(tmp_path: Path) -> None:
    folder = tree(tmp_path / "source", *LAYOUTS["splits"])
    assert set(found(open_source(str(folder), held_out=True, data_dir=tmp_path))) == {
        "test/cat/c.png"
    }
    other = tree(tmp_path / "other", *LAYOUTS["classes"])
    assert len(found(open_source(str(other), held_out=True, data_dir=tmp_path))) == 2


@pytest.mark.parametrize(
    ("label_from", "labels"),
    [
        ("auto", ["cat", "dog", None]),
        ("top", ["animals", "animals", "animals"]),
        ("parent", ["tabby", "dog", "animals"]),
        ("none", [None, None, None]),
    ],
)
def test_label_from_decides(tmp_path: Path, label_from: str, labels: list[str | None]) -> None:
    names = ("animals/cat/tabby/a.png", "animals/dog/b.png", "animals/x.png")
    folder = tree(tmp_path / "source", *names)
    source = open_source(str(folder), label_from=label_from, data_dir=tmp_path)  # type: ignore[arg-type]
    assert [found(source)[name][0] for name in names] == labels
