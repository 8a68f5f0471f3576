"""Sources of images: CIFAR-10's binary layout, folders, archives, the sample."""

import hashlib
import io
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import pytest
from PIL import Image

from image_search.errors import DownloadError, ImageError, SourceError
from tests.support.images import draw
from worker.ingest import digest
from worker.sources import Item, Source, Split, open_source, sample
from worker.sources.skipped import Kind

PACKERS: Final = {"zip": "zip", "tar": "tar", "tar.gz": "gztar", "tar.xz": "xztar"}
# In the order that the dataset numbers them.
LABELS: Final = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]


def opened(path: Path | str, split: Split = "train") -> Source:
    return open_source(str(path), split=split, data_dir=Path("nowhere"))


def by_id(source: Source) -> dict[str, Item]:
    items = list(source.items())
    found = {item.id: item for item in items}
    assert len(found) == len(items) == source.total
    assert all(re.fullmatch(r"[ -~]{1,512}", id_) for id_ in found)
    return found


def contents(source: Source) -> dict[str, tuple[str | None, object]]:
    return {id_: (item.label, item.content) for id_, item in by_id(source).items()}


def write(folder: Path, *names: str) -> Path:
    """Files that hold their own names; sources do not decode."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.fsencode(name))
    return folder


def pack(folder: Path, kind: str, *, wrapped: bool = False) -> Path:
    """An archive that is named like the folder, of what it holds or of itself."""
    root, base = (folder.parent, folder.name) if wrapped else (folder, None)
    target = folder.parent / "packed" / folder.name
    return Path(shutil.make_archive(str(target), PACKERS[kind], root, base))


# --- CIFAR-10 ---


def record(label: int, pixels: np.ndarray) -> bytes:
    """One record as https://www.cs.toronto.edu/~kriz/cifar.html gives it."""
    planes = [pixels[:, :, channel].tobytes() for channel in range(3)]
    return bytes([label]) + b"".join(planes)


@pytest.fixture
def cifar10(tmp_path: Path) -> tuple[Path, list[tuple[int, np.ndarray]]]:
    """An unpacked folder of two records a batch, and the records in order, test ones last."""
    rng = np.random.default_rng(0)
    records = [(n % 10, rng.integers(0, 256, (32, 32, 3), np.uint8)) for n in range(12)]
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "batches.meta.txt").write_text("\n".join([*LABELS, "", ""]))
    names = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    for n, name in enumerate(names):
        (folder / name).write_bytes(b"".join(record(*r) for r in records[2 * n : 2 * n + 2]))
    (folder / "readme.html").write_text("<html>")
    return folder, records


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "bare tar.gz"])
@pytest.mark.parametrize(("split", "first", "last"), [("train", 0, 10), ("test", 10, 12)])
def test_cifar10(
    cifar10: tuple[Path, list[tuple[int, object]]], kind: str, split: Split, first: int, last: int
) -> None:
    folder, records = cifar10
    path = folder
    if kind != "folder":
        path = pack(folder, kind.removeprefix("bare "), wrapped="bare" not in kind)
    items = list(opened(path, split).items())
    assert [item.id for item in items] == [f"cifar10-{split}-{n:05d}" for n in range(last - first)]
    assert opened(path, split).total == len(items)
    for item, (label, pixels) in zip(items, records[first:last], strict=True):
        assert item.label == LABELS[label]
        assert item.metadata == {"source": "cifar10", "split": split}
        np.testing.assert_array_equal(item.content, pixels)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("data_batch_3.bin", None, r"data_batch_3\.bin missing"),
        ("batches.meta.txt", None, r"batches\.meta\.txt missing"),
        ("data_batch_5.bin", b"", r"data_batch_5\.bin has 0 bytes"),
        ("data_batch_5.bin", bytes(3074), r"data_batch_5\.bin has 3,074 bytes"),
        ("data_batch_2.bin", b"\x0a" + bytes(3072), "label has no name"),
    ],
)
def test_damaged_cifar10(
    cifar10: tuple[Path, object], file: str, content: bytes | None, message: str
) -> None:
    folder, _ = cifar10
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        opened(folder)
    if file != "batches.meta.txt":  # an archive without it is one of image files
        with pytest.raises(SourceError, match=message):
            opened(pack(folder, "tar.gz", wrapped=True))


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz"])
def test_truncated_cifar10(cifar10: tuple[Path, object], kind: str) -> None:
    archive = pack(cifar10[0], kind, wrapped=True)
    os.truncate(archive, archive.stat().st_size // 2)
    with pytest.raises(SourceError, match="damaged"):
        opened(archive)


def test_cifar10_that_cannot_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"cifar-10-binary\.tar\.gz could not be downloaded"):
        open_source("cifar10", split="train", data_dir=tmp_path)
    (tmp_path / "downloads" / "cifar-10-binary.tar.gz").write_bytes(b"something else")
    with pytest.raises(DownloadError, match=r"cifar-10-binary\.tar\.gz has the checksum"):
        open_source("cifar10", split="train", data_dir=tmp_path)


class Python2Pickler(pickle._Pickler):
    """Writes strings as Python 2 does, in which the dataset was made."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        if len(value) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(value)]) + value)  # type: ignore[attr-defined]
        else:
            self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch[bytes] = save_bytes


def python2(value: object) -> bytes:
    out = io.BytesIO()
    Python2Pickler(out, 2).dump(value)
    return out.getvalue()


PICKLERS: Final[dict[str, Callable[[object], bytes]]] = {
    "Python 2": python2,
    **{f"protocol {n}": partial(pickle.dumps, protocol=n) for n in (2, 3, 4, 5)},
}


def python_version(
    folder: Path, records: list[tuple[int, np.ndarray]], dumps: Callable[[object], bytes]
) -> Path:
    """The same records as in the binary version."""
    folder.mkdir(parents=True)
    (folder / "batches.meta").write_bytes(
        dumps({b"label_names": [label.encode() for label in LABELS], b"num_vis": 3072})
    )
    for n, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        part = records[2 * n : 2 * n + 2]
        planes = np.array([np.frombuffer(record(*r)[1:], np.uint8) for r in part])
        batch = {
            b"batch_label": b"a batch",
            b"labels": [label for label, _ in part],
            b"data": planes,
            b"filenames": [b"a.png", b"b.png"],
        }
        (folder / name).write_bytes(dumps(batch))
    (folder / "readme.html").write_text("<html>")
    return folder


@pytest.mark.parametrize("pickler", PICKLERS)
@pytest.mark.parametrize("kind", ["folder", "tar.gz", "folder around"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_of_python_is_the_same(
    cifar10: tuple[Path, Any], tmp_path: Path, pickler: str, kind: str, split: Split
) -> None:
    binary, records = cifar10
    around = tmp_path / "datasets"
    path = python_version(around / "cifar-10-batches-py", records, PICKLERS[pickler])
    if kind == "tar.gz":
        path = pack(path, "tar.gz", wrapped=True)
    elif kind == "folder around":
        path = around
    source, expected = opened(path, split), opened(binary, split)
    assert (source.name, source.total) == (expected.name, expected.total)
    for item, other in zip(source.items(), expected.items(), strict=True):
        assert (item.id, item.label, item.metadata) == (other.id, other.label, other.metadata)
        assert isinstance(item.content, np.ndarray)
        assert isinstance(other.content, np.ndarray)
        assert digest(item.content) == digest(other.content)


class Hostile:
    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self._reduced = call, arguments

    def __reduce__(self) -> Any:
        return self._reduced


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_runs_nothing(cifar10: tuple[Path, Any], tmp_path: Path, protocol: int) -> None:
    path = python_version(tmp_path / "cifar-10-batches-py", cifar10[1], python2)
    proof = tmp_path / "it ran"
    for hostile in (
        Hostile(os.system, f"touch '{proof}'"),
        Hostile(eval, f"open({str(proof)!r}, 'w')"),
        Hostile(np.load, str(proof)),
        Hostile(getattr, "text", "upper"),
        np.array([Hostile(os.mkdir, str(proof))], object),
        np.float64(1),
    ):
        batch = {b"labels": [0, 0], b"data": hostile}
        (path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol))
        with pytest.raises(SourceError, match="data_batch_1 is not a batch"):
            opened(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    "batch",
    [
        b"",
        b"no pickle",
        python2([]),
        python2({b"labels": [1]}),
        python2({b"labels": [1], b"data": b"bytes"}),
        python2({b"labels": [1], b"data": np.zeros((1, 3072), np.float32)}),
        python2({b"labels": [1], b"data": np.zeros((2, 3072), np.uint8)}),
        python2({b"labels": [1], b"data": np.zeros((1, 3071), np.uint8)}),
        python2({b"labels": [], b"data": np.zeros((0, 3072), np.uint8)}),
        python2({b"labels": [999], b"data": np.zeros((1, 3072), np.uint8)}),
        python2({b"labels": [77], b"data": np.zeros((1, 3072), np.uint8)}),
    ],
)
def test_damaged_cifar10_of_python(cifar10: tuple[Path, Any], tmp_path: Path, batch: bytes) -> None:
    path = python_version(tmp_path / "py", cifar10[1], python2)
    (path / "data_batch_2").write_bytes(batch)
    with pytest.raises(SourceError, match=r"data_batch_2 is not a batch|label has no name"):
        opened(path)
    (path / "data_batch_2").unlink()
    with pytest.raises(SourceError, match="Python layout: data_batch_2 missing"):
        opened(path)


def test_cut_pickles(cifar10: tuple[Path, Any], tmp_path: Path) -> None:
    path = python_version(tmp_path / "py", cifar10[1], python2)
    whole = (path / "data_batch_1").read_bytes()
    rng = random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole[: rng.randrange(len(whole))])
        for _ in range(rng.randrange(3)):
            damaged[rng.randrange(len(damaged) + 1) : 0] = rng.randbytes(1)
        (path / "data_batch_1").write_bytes(damaged)
        with suppress(SourceError):
            assert opened(path).total == 10


# --- one image ---


@pytest.mark.parametrize("name", ["a.png", "without suffix", "photo.jpg?size=large"])
def test_one_image_has_the_id_that_it_has_in_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "pics"
    folder.mkdir()
    Image.new("L", (3, 3)).save(folder / name, "PNG")
    expected = by_id(opened(folder))
    assert by_id(opened(folder / name)) == expected
    (tmp_path / "link").symlink_to(folder / name)
    assert by_id(opened(tmp_path / "link")) == expected
    source = opened(folder / name)
    assert source.name == str(folder / name)
    assert source.origin == opened(folder).origin


# --- folders and archives ---

# What a folder holds: by file, the id and the label.
TREES: Final[dict[str, dict[str, tuple[str, str | None]]]] = {
    "flat": {"a.png": ("pics/a.png", None), "b c.JPEG": ("pics/b c.JPEG", None)},
    "labels": {"cat/a.png": ("pics/cat/a.png", "cat"), "dog/a.png": ("pics/dog/a.png", "dog")},
    "one label": {"cat/a.png": ("pics/cat/a.png", "cat"), "cat/b.gif": ("pics/cat/b.gif", "cat")},
    "label of its name": {
        "cat/a.png": ("pics/cat/a.png", "cat"),
        "pics/a.png": ("pics/pics/a.png", "pics"),
    },
    "mixed depths": {
        "a.png": ("pics/a.png", None),
        "cat/a.png": ("pics/cat/a.png", "cat"),
        "cat/old/2/a.png": ("pics/cat/old/2/a.png", "cat"),
    },
    "folder around": {
        "all/cat/a.png": ("pics/all/cat/a.png", "cat"),
        "all/dog/b.png": ("pics/all/dog/b.png", "dog"),
    },
    "unicode": {
        "Käse/ä%41.png": ("pics/K%C3%A4se/%C3%A4%2541.png", "Käse"),
        "Käse/äA.png": ("pics/K%C3%A4se/%C3%A4A.png", "Käse"),
        "犬/🐕.png": ("pics/%E7%8A%AC/%F0%9F%90%95.png", "犬"),
    },
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("kind", ["folder", *PACKERS])
def test_ids_labels_and_contents(tmp_path: Path, tree: str, kind: str) -> None:
    folder = write(tmp_path / "pics", *TREES[tree])
    expected = {id_: (label, os.fsencode(name)) for name, (id_, label) in TREES[tree].items()}
    if kind == "folder":
        assert contents(opened(folder)) == expected
    else:
        assert contents(opened(pack(folder, kind))) == expected
        assert contents(opened(pack(folder, kind, wrapped=True))) == expected


def test_metadata_names_source_and_path(tmp_path: Path) -> None:
    items = by_id(opened(write(tmp_path / "pics", "dog/x/a.png", "b.png")))
    assert items["pics/dog/x/a.png"].metadata == {"source": "pics", "path": "dog/x/a.png"}
    assert items["pics/b.png"].metadata == {"source": "pics", "path": "b.png"}


@pytest.mark.parametrize("kind", ["folder", *PACKERS])
def test_files_that_are_no_images(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path / "pics", "a.png", "notes.txt", "cat/data.csv", "cat/png")
    write(folder, ".a.png", ".git/a.png", "cat/.DS_Store", "__MACOSX/._a.png", "__MACOSX/b.png")
    source = opened(folder if kind == "folder" else pack(folder, kind, wrapped=True))
    assert list(by_id(source)) == ["pics/a.png"]
    assert (source.skipped.counts[Kind.NOT_IMAGE], source.skipped.counts[Kind.TABLE]) == (2, 1)
    assert source.skipped.counts.keys() == {Kind.NOT_IMAGE, Kind.TABLE, Kind.HIDDEN}
    assert source.skipped.lost == 0


def test_order_is_the_same_every_time(tmp_path: Path) -> None:
    names = [f"{label}/{n}.png" for n in range(20, 10, -1) for label in ("dog", "cat")]
    folder = write(tmp_path / "pics", *names)
    for path in (folder, pack(folder, "zip"), pack(folder, "tar")):
        source = opened(path)
        for _ in range(2):
            assert list(by_id(source)) == sorted(f"pics/{name}" for name in names)


def test_hard_links_in_a_tar(tmp_path: Path) -> None:
    folder = write(tmp_path / "pics", "cat/a.png", "dog/x.png")
    os.link(folder / "cat/a.png", folder / "dog/b.png")
    assert contents(opened(pack(folder, "tar"))) == contents(opened(folder))


def test_file_that_was_appended_to_a_tar_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "pics", "cat/a.png", "dog/x.png")
    archive = pack(folder, "tar")
    (folder / "cat/a.png").write_bytes(b"new")
    with tarfile.open(archive, "a") as appended:
        appended.add(folder / "cat/a.png", "./cat/a.png")
    assert contents(opened(archive)) == contents(opened(folder))


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names that are any bytes")
@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz"])
def test_names_that_are_not_utf_8(tmp_path: Path, kind: str) -> None:
    names = [
        os.fsdecode(name) for name in (b"caf\xe9/\xff.png", b"caf\xe9/\xfe.png", b"x/\xff.png")
    ]
    folder = write(tmp_path / "pics", *names)
    items = by_id(opened(folder if kind == "folder" else pack(folder, kind)))
    assert set(items) == {"pics/caf%E9/%FF.png", "pics/caf%E9/%FE.png", "pics/x/%FF.png"}
    assert {item.content for item in items.values()} == set(map(os.fsencode, names))
    for item in items.values():
        for text in (item.label, *item.metadata.values()):
            assert str(text).encode()  # a lone surrogate could not be stored


@pytest.mark.parametrize("kind", ["folder", *PACKERS])
def test_long_paths(tmp_path: Path, kind: str) -> None:
    deep = "/".join(letter * 200 for letter in "abc")
    names = [f"{deep}/{'ü' * 20}{n}.png" for n in range(3)] + ["x.png"]
    folder = write(tmp_path / "pics", *names)
    items = by_id(opened(folder if kind == "folder" else pack(folder, kind)))
    assert len(items) == len(names)
    assert sorted(map(len, items)) == [len("pics/x.png"), 512, 512, 512]
    assert {item.metadata["path"] for item in items.values()} == set(names)


@pytest.mark.parametrize("source", ["nowhere", "no/where.zip", "x" * 300])
def test_source_that_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="cifar10, sample"):
        opened(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pics.pdf", b"%PDF", "not a folder, archive"),
        ("pics.rar", b"Rar!", "not a folder, archive"),
        ("pics.zip", b"not a zip", "damaged"),
        ("pics.zip", b"", "damaged"),
        ("pics.tar", b"not a tar", "damaged"),
        ("pics.tar", b"", "damaged"),
        ("pics.tgz", b"not a tar", "damaged"),
        ("pics.tar.xz", b"\xfd7zXZ\0", "damaged"),
    ],
)
def test_file_that_is_no_source(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        opened(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", *PACKERS])
@pytest.mark.parametrize("names", [[], ["notes.txt", "cat/.a.png"]])
def test_no_images(tmp_path: Path, kind: str, names: list[str]) -> None:
    folder = write(tmp_path / "pics", *names)
    folder.mkdir(exist_ok=True)
    with pytest.raises(SourceError, match="has no images"):
        opened(folder if kind == "folder" else pack(folder, kind, wrapped=True))


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A folder of four pictures that do not compress."""
    folder = write(tmp_path / "pics", *(f"cat/{name}.png" for name in "012ü"))
    for n, file in enumerate(sorted(folder.rglob("*.png"))):
        file.write_bytes(np.random.default_rng(n).bytes(1000))
    return folder


@pytest.mark.parametrize("kind", PACKERS)
def test_truncated_archive(big: Path, kind: str) -> None:
    archive = pack(big, kind)
    whole = archive.read_bytes()
    # A plain tar is cut in headers, in contents and in what fills up blocks, never at their ends.
    end = len(whole.rstrip(b"\0")) if kind == "tar" else len(whole) * 9 // 10
    for size in range(100, end, 128):
        archive.write_bytes(whole[:size])
        with pytest.raises(SourceError, match="damaged"):
            opened(archive)


def test_damaged_header_in_the_middle_of_a_tar(big: Path) -> None:
    archive = big.parent / "pics.tar"
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as packed:
        packed.add(big, "pics")
    archive.write_bytes(archive.read_bytes().replace(b"cat/2.png", b"cat/3.png", 1))
    with pytest.raises(SourceError, match="damaged"):
        opened(archive)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_damage_anywhere_is_an_error_of_the_source(big: Path, kind: str) -> None:
    archive = pack(big, kind)
    whole = archive.read_bytes()
    # A zip's names and sizes are at its end, a tar's before each file.
    headers = range(whole.find(b"PK\1\2"), len(whole)) if kind == "zip" else range(0, 3000, 5)
    for position in headers:
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        archive.write_bytes(damaged)
        with suppress(SourceError):
            source = opened(archive)
            assert len(list(source.items())) == source.total


def test_one_damaged_file_in_a_zip(big: Path) -> None:
    expected = contents(opened(big))
    bad = "pics/cat/2.png"
    content = expected[bad][1]
    assert isinstance(content, bytes)
    with zipfile.ZipFile(big.parent / "pics.zip", "w") as archive:
        for file in big.rglob("*.png"):
            archive.write(file, file.relative_to(big))
    damaged = (big.parent / "pics.zip").read_bytes().replace(content, content[::-1])
    (big.parent / "pics.zip").write_bytes(damaged)
    found = contents(opened(big.parent / "pics.zip"))
    assert isinstance(found.pop(bad)[1], ImageError)
    del expected[bad]
    assert found == expected


def test_encrypted_zip(big: Path) -> None:
    archive = pack(big, "zip")
    content = bytearray(archive.read_bytes())
    content[content.rindex(b"PK\1\2") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(SourceError, match="encrypted"):
        opened(archive)


@pytest.mark.slow
def test_file_that_vanishes_or_is_huge(tmp_path: Path) -> None:
    folder = write(tmp_path / "pics", "a.png", "b.png", "c.png", "d.png")
    source = opened(folder)
    (folder / "b.png").unlink()
    os.truncate(folder / "c.png", 2**28 + 1)  # a hole, which takes no room
    found = {item.id: item.content for item in source.items()}
    assert isinstance(found["pics/b.png"], ImageError)
    assert isinstance(found["pics/c.png"], ImageError)
    assert (found["pics/a.png"], found["pics/d.png"]) == (b"a.png", b"d.png")


@pytest.mark.parametrize("kind", PACKERS)
def test_archive_that_vanishes(big: Path, kind: str) -> None:
    source = opened(pack(big, kind))
    shutil.rmtree(big.parent / "packed")
    with pytest.raises(SourceError, match="cannot be read"):
        list(source.items())


# --- the sample ---


@pytest.mark.slow
def test_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "draw", draw)
    items = by_id(opened("sample"))
    assert len(items) == 600
    labels = [item.label for item in items.values()]
    assert len(set(labels)) == 10
    assert {labels.count(label) for label in set(labels)} == {60}
    seen = set()
    for item in items.values():
        assert isinstance(item.content, np.ndarray)
        assert item.content.shape == (96, 96, 3)
        assert item.content.dtype == np.uint8
        assert item.metadata == {"source": "sample"}
        seen.add(item.content.tobytes())
    held_out = {sample.draw(kind, seed).tobytes() for kind in sample.KINDS for seed in (100, 999)}
    assert len(seen | held_out) == 620
    assert "sample-castle-042" in items


def test_what_is_picked_of_the_sample_alone_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    def note_and_draw(kind: str, seed: int) -> Image.Image:
        seen.append((kind, seed))
        return draw(kind, seed)

    monkeypatch.setattr(sample, "draw", note_and_draw)
    source = opened("sample")
    picked = list(source.pick({599, 3}))
    first, last = sample.KINDS[0], sample.KINDS[-1]
    assert [item.id for item in picked] == [f"sample-{first}-003", f"sample-{last}-059"]
    assert seen == [(first, 3), (last, 59)]
    list(source.pick({3}))
    assert len(seen) == 2, "it is drawn once"
    seen.clear()
    assert len(list(opened("sample").limited(40).items())) == len(seen) == 40


@pytest.mark.slow
def test_the_samples_test_images_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "draw", draw)
    train = {
        item.id: item for item in open_source("sample", split="train", data_dir=Path()).items()
    }
    source = open_source("sample", split="test", data_dir=Path())
    test = list(source.items())
    assert len(test) == source.total == 500
    assert not train.keys() & {item.id for item in test}
    contents = {np.asarray(item.content).tobytes() for item in train.values()}
    assert not contents & {np.asarray(item.content).tobytes() for item in test}


@pytest.mark.slow
def test_sample_is_the_same_in_every_process() -> None:
    digest = hashlib.sha256(b"".join(sample.draw(kind, 7).tobytes() for kind in sample.KINDS))
    program = (
        "import hashlib; from worker.sources import sample; print(hashlib.sha256("
        "b''.join(sample.draw(kind, 7).tobytes() for kind in sample.KINDS)).hexdigest())"
    )
    for seed in ("1", "2"):
        other = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        )
        assert other.stdout.strip() == digest.hexdigest()


def test_sample_has_no_other_kinds() -> None:
    with pytest.raises(ValueError, match="submarine"):
        sample.draw("submarine", 0)


# --- picking ---


def test_pick_stops_at_the_last_position() -> None:
    made = []

    def items() -> Iterator[Item]:
        for number in range(1000):
            made.append(number)
            yield Item(str(number), None, b"", {})

    source = Source("counted", 1000, items)
    assert [item.id for item in source.pick({7, 2})] == ["2", "7"]
    assert made == list(range(8))
    assert list(source.pick(set())) == []


# --- a limit ---


def counted(total: int) -> Source:
    items = [Item(f"{number:03d}", None, b"", {}) for number in range(total)]
    return Source("counted", total, lambda: iter(items))


def ids(source: Source) -> list[str]:
    return [item.id for item in source.items()]


def test_a_limit_draws_at_random_the_same_every_time() -> None:
    drawn = ids(counted(1000).limited(100))
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 100
    assert drawn == ids(counted(1000).limited(100))
    # From all parts of the source, which is ordered by label.
    parts = [sum(f"{part}00" <= id_ < f"{part + 1}00" for id_ in drawn) for part in range(9)]
    assert min(parts) > 2
    assert set(drawn) < set(ids(counted(1000).limited(150)))


def test_a_limit_that_is_none() -> None:
    for limit in (None, 10, 11):
        limited = counted(10).limited(limit)
        assert (limited.total, ids(limited)) == (10, ids(counted(10)))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_picking_from_what_a_limit_left(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path / "pics", *(f"{number}.png" for number in range(20)))
    source = opened(folder if kind == "folder" else pack(folder, kind)).limited(7)
    everything = ids(source)
    assert len(everything) == source.total == 7
    assert [item.id for item in source.pick({1, 4, 99})] == [everything[1], everything[4]]
