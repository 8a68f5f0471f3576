"""WebDataset: shards of samples, alone and in folders."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from image_search.errors import SourceError
from tests.support import SHARED
from tests.support.sources import items, opened
from worker.sources.skipped import Kind


def write(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in {".gz", ".tgz"} else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def sample(key: str, number: int, **fields: Any) -> dict[str, bytes]:
    files = {f"{key}.jpg": f"image {key}".encode(), f"{key}.cls": str(number).encode()}
    if fields:
        files[f"{key}.json"] = json.dumps(fields).encode()
    return files


def test_labels_and_metadata_of_samples(tmp_path: Path) -> None:
    path = write(
        tmp_path / "pets-0000.tar",
        {
            **sample("a/0001", 0, label="cat", price=3, deep={"x": 1}),
            "a/0001.txt": "Käse \n".encode(),
            **sample("a/0002", 7, price=2.5),
            "a/0003.seg.png": b"mask",
            "a/0003.JPG": b"image a/0003",
            "a/0003.npy": b"array",
            "a/0004.jpg": b"alone",
            "a/0005.jpg": b"bad",
            "a/0005.json": b"{",
            "a/0006.cls": b"3",
        },
    )
    source = opened(path)
    found = items(source)
    assert {id_: item.label for id_, item in found.items()} == {
        "pets-0000/a/0001.jpg": "cat",
        "pets-0000/a/0002.jpg": "7",
        "pets-0000/a/0003.seg.png": None,
        "pets-0000/a/0003.JPG": None,
        "pets-0000/a/0004.jpg": None,
        "pets-0000/a/0005.jpg": None,
    }
    assert found["pets-0000/a/0001.jpg"].content == b"image a/0001"
    assert found["pets-0000/a/0001.jpg"].metadata == {
        "source": "pets-0000",
        "path": "a/0001.jpg",
        "price": 3.0,
        "text": "Käse",
    }
    assert found["pets-0000/a/0002.jpg"].metadata["price"] == 2.5
    assert source.skipped.counts == {Kind.NOT_IMAGE: 1}
    assert "2 found: 7 (1), cat (1); 4 images have none; metadata: price, text" in source.about
    assert {item.label for item in opened(path, label_from="none").items()} == {None}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz"])
def test_a_folder_of_shards(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "pets"
    for name, keys in {"train-0": "abc", "train-1": "de", "val-0": "fg"}.items():
        samples = {k: v for key in keys for k, v in sample(key, ord(key)).items()}
        write(folder / f"{name}.{suffix}", samples)
    (folder / "sizes.txt").write_text("3 2 2")
    source = opened(folder)
    found = items(source)
    assert list(found) == [
        *(f"pets/train-0/{key}.jpg" for key in "abc"),
        *(f"pets/train-1/{key}.jpg" for key in "de"),
        *(f"pets/val-0/{key}.jpg" for key in "fg"),
    ]
    assert source.splits == ("train", "val")
    assert source.skipped.counts == {Kind.NOT_IMAGE: 1}
    assert [item.id for item in opened(folder, split="val").items()] == list(found)[5:]
    assert [item.id for item in source.pick({1, 3, 6, 99})] == [list(found)[n] for n in (1, 3, 6)]
    assert len(list(source.limited(4).items())) == 4


def test_ids_are_those_of_a_tar_of_images(tmp_path: Path) -> None:
    samples = {**sample("x/1", 0), **sample("x/2", 1)}
    of_shard = list(items(opened(write(tmp_path / "a" / "pets.tar", samples))))
    files = {name: content for name, content in samples.items() if name.endswith("jpg")}
    assert list(items(opened(write(tmp_path / "b" / "pets.tar", files)))) == of_shard


def test_a_tar_of_images_and_texts_is_no_webdataset(tmp_path: Path) -> None:
    files = {"cat/1.jpg": b"1", "cat/1.txt": b"0 0.5 0.5", "dog/2.jpg": b"2", "labels.json": b"{}"}
    found = items(opened(write(tmp_path / "x.tar", files)))
    assert [item.label for item in found.values()] == ["cat", "dog"]


def test_damaged_shards(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", {k: v for n in range(5) for k, v in sample(str(n), n).items()})
    # Cut in headers, in contents and in what fills up blocks, never at their ends.
    whole = path.read_bytes()
    for size in range(100, len(whole.rstrip(b"\0")), 128):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match="damaged"):
            opened(path)


def test_a_shard_that_others_made() -> None:
    path = SHARED / "data" / "files" / "webdataset-00000.tar"
    if not path.exists():
        pytest.skip("it is not at hand")
    found = items(opened(path))
    assert len(found) == 3
    assert {item.label for item in found.values()} <= {"cat", "dog"}
    assert all(item.metadata["text"] == "a caption" for item in found.values())
