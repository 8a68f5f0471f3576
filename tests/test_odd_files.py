"""What folders and archives hold beside images: links, FIFOs, rights, odd names, lying archives."""

import codecs
import io
import os
import random
import socket
import stat
import sys
import tarfile
import tempfile
import tracemalloc
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from image_search.errors import ImageError, SourceError
from worker.sources import Item, Source, open_source
from worker.sources.skipped import Kind

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs links, FIFOs and rights")
NOBODY = 65534


def picture(format_: str = "PNG", grey: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("L", (3, 2), grey).save(out, format_)
    return out.getvalue()


def opened(path: Path) -> Source:
    return open_source(str(path), data_dir=Path("nowhere"))


def items(source: Source) -> dict[str, Item]:
    found = {str(item.metadata["path"]): item for item in source.items()}
    assert len(found) == source.total
    return found


def write(file: Path, content: bytes = b"content") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that a user without rights can enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        path = Path(name) / "pics"
        path.mkdir()
        yield path


@contextmanager
def as_a_user() -> Iterator[None]:
    """Root may read everything; what follows is done with a user's rights."""
    if os.geteuid() != 0:
        yield
        return
    for encoding in ("cp437", "cp1252", "cp932", "cp866", "cp1251"):
        codecs.lookup(encoding)  # a user may have no right to read root's Python
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# --- what is an image -----------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "JPEG2000"])
@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_images_without_a_suffix_are_known_by_their_content(
    tmp_path: Path, format_: str, kind: str
) -> None:
    names = ["IMG_0001", "photo.jpg?size=large", "a.picture", "cat.1"]
    contents = {name: picture(format_, grey) for grey, name in enumerate(names)}
    contents |= {"README": b"no picture", "notes.bin2": b"BM is no bitmap", "empty": b""}
    source = opened(pack(tmp_path, contents, kind))
    assert {name: item.content for name, item in items(source).items()} == {
        name: contents[name] for name in names
    }
    assert source.skipped.counts == {Kind.NOT_IMAGE: 3}
    assert source.skipped.lost == 0


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_pictures_that_cannot_be_read_are_named(tmp_path: Path, kind: str) -> None:
    names = ["a.png", "b.cr2", "c.svg", "film.swf", "notes.txt", "more.zip", "more.tar.gz"]
    source = opened(pack(tmp_path, dict.fromkeys(names, b"x"), kind))
    assert source.skipped.counts == {Kind.UNSUPPORTED: 2, Kind.NOT_IMAGE: 2, Kind.ARCHIVE: 2}
    assert source.skipped.lost == 2
    lines = list(source.skipped.lines())
    assert lines[0] == (
        "left out 2 (in a format that cannot be read): b.cr2, c.svg: convert it to JPEG or PNG"
    )
    assert any("give its path as SOURCE" in line for line in lines)


def test_a_table_beside_images_is_named(tmp_path: Path) -> None:
    files = {"images/1.png": b"", "labels.csv": b"filename,label\nimages/1.png,cat\n"}
    source = opened(pack(tmp_path, files, "folder"))
    [line] = source.skipped.lines()
    assert line.startswith("left out 1 (a table): labels.csv: for the labels")
    assert not source.skipped.lost


def test_what_is_left_out_is_counted_with_a_few_examples(tmp_path: Path) -> None:
    names = ["a.png", *(f"{n}.txt" for n in range(2000))]
    source = opened(pack(tmp_path, dict.fromkeys(names, b""), "folder"))
    [line] = source.skipped.lines()
    assert line == "left out 2,000 (not an image): 0.txt, 1.txt, 10.txt, …"


def test_a_source_without_images_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no images(.|\n)*left out 1 .*raw\.nef"):
        opened(pack(tmp_path, {"raw.nef": b""}, "folder"))


def pack(folder: Path, contents: dict[str, bytes], kind: str) -> Path:
    path = folder / ("pics" if kind == "folder" else f"pics.{kind}")
    if kind == "folder":
        for name, content in contents.items():
            write(path / name, content)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as packed:
            for name, content in contents.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                packed.addfile(member, io.BytesIO(content))
    return path


# --- folders --------------------------------------------------------------------------------------


@posix
def test_links_are_followed_but_not_in_circles(folder: Path) -> None:
    outside = folder.parent / "outside"
    write(outside / "dog" / "d.png")
    write(folder / "cat" / "a.png")
    os.symlink("a.png", folder / "cat" / "b.png")
    os.symlink(outside / "dog", folder / "dog")
    os.symlink("..", folder / "cat" / "up")
    os.symlink(folder.parent, folder / "out")
    os.symlink("cat", folder / "again")
    os.symlink("self.png", folder / "self.png")
    os.symlink("nowhere.png", folder / "gone.png")
    os.symlink(folder / "dog", outside / "dog" / "loop")
    source = opened(folder)
    found = items(source)
    assert {name: item.label for name, item in found.items()} == {
        "cat/a.png": "cat",
        "cat/b.png": "cat",
        "dog/d.png": "dog",
    }
    assert source.skipped.counts == {Kind.LOOP: 4, Kind.BROKEN_LINK: 2}
    assert source.skipped.lost == 2


@posix
def test_only_files_are_opened(folder: Path) -> None:
    write(folder / "a.png")
    os.mkfifo(folder / "fifo.png")
    os.symlink("/dev/zero", folder / "zero.jpg")
    os.symlink("/dev/tty", folder / "tty")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.png"))
        source = opened(folder)
        assert list(items(source)) == ["a.png"]
    assert source.skipped.counts == {Kind.SPECIAL: 4}
    assert source.skipped.lost == 4


@posix
def test_a_fifo_that_takes_the_place_of_a_file_is_not_waited_for(folder: Path) -> None:
    write(folder / "a.png")
    file = write(folder / "b.png")
    source = opened(folder)
    file.unlink()
    os.mkfifo(file)
    content = items(source)["b.png"].content
    assert isinstance(content, ImageError)
    assert "no longer a file" in str(content)


@posix
def test_what_may_not_be_read_is_named_and_the_rest_is_there(folder: Path) -> None:
    write(folder / "cat" / "a.png")
    write(folder / "cat" / "secret.png").chmod(0)
    write(folder / "closed" / "b.png")
    write(folder / "unsearchable" / "c.png")
    (folder / "closed").chmod(0)
    (folder / "unsearchable").chmod(0o444)
    with as_a_user():
        source = opened(folder)
        found = items(source)
    assert found["cat/a.png"].content == b"content"
    assert isinstance(found["cat/secret.png"].content, ImageError)
    assert source.skipped.counts == {Kind.UNREADABLE: 2}
    [line] = source.skipped.lines()
    assert "cannot be opened" in line
    assert "unsearchable/c.png, closed" in line
    (folder / "closed").chmod(0o755)


@posix
def test_a_source_that_may_not_be_read_is_an_error(folder: Path) -> None:
    write(folder / "a.png")
    folder.chmod(0)
    with as_a_user(), pytest.raises(SourceError, match="Permission denied"):
        opened(folder)
    folder.chmod(0o755)


SUFFIXES = [".png", ".JPG", ".jpeg", "", ".txt", ".jpg?size=large", ".nef", ".unknown"]
STEMS = ["a", "été", "e\u0301te\u0301", "b c", "#1", "%41", "x'\"", "a\nb", "犬", "caf\udce9", ".h"]
PNG = b"\x89PNG\r\n\x1a\n"


def plant(rng: random.Random, root: Path) -> None:
    """A tree with odd names, links, FIFOs and rights; every file has a content of its own."""
    folders = [root, root.parent / "outside"]
    folders[1].mkdir()
    for number in range(12):
        made = rng.choice(folders) / f"{rng.choice(STEMS)}{number}"
        made.mkdir()
        folders.append(made)
    for number in range(60):
        name = f"{rng.choice(STEMS)}{number}{rng.choice(SUFFIXES)}"
        start = rng.choice([PNG, b"text"])
        write(rng.choice(folders) / name, start + str(number).encode())
    everything = [*root.rglob("*"), *folders[1].rglob("*")]
    for number in range(15):
        link = rng.choice(folders) / f"link{number}{rng.choice(['', '.png'])}"
        os.symlink(rng.choice([*everything, root.parent, root, Path("nowhere")]), link)
    for number in range(3):
        os.mkfifo(rng.choice(folders) / f"fifo{number}.png")
    for made in rng.sample(folders[2:], 2):
        made.chmod(rng.choice([0, 0o400]))


def expected(root: Path) -> Counter[bytes | None]:
    """What a folder holds, by content; None for files that cannot be read.

    Worked out from real paths: a folder counts once, however many ways lead to it.
    """
    above = {os.path.realpath(parent) for parent in root.resolve().parents}
    images: Counter[bytes | None] = Counter()
    seen: set[str] = set()

    def names(real: str) -> list[str]:
        if not os.access(real, os.R_OK, effective_ids=True):
            return []
        return [name for name in os.listdir(real) if not name.startswith(".")]

    def enter(real: str, links: list[str]) -> None:
        seen.add(real)
        for name in names(real):
            path = os.path.join(real, name)
            if not os.access(real, os.X_OK, effective_ids=True):
                continue
            if os.path.isdir(path):
                target = os.path.realpath(path)
                if os.path.islink(path):
                    links.append(target)
                elif target not in seen:
                    enter(target, links)
            elif os.path.isfile(path):
                look(path, name)

    def look(path: str, name: str) -> None:
        suffix = os.path.splitext(name)[1].lower()
        can_read = os.access(path, os.R_OK, effective_ids=True)
        content = Path(path).read_bytes() if can_read else None
        is_odd = suffix in {"", ".unknown", ".jpg?size=large"}
        if suffix in {".png", ".jpg", ".jpeg"} or (is_odd and (content or b"").startswith(PNG)):
            images[content] += 1

    pending: list[str] = [os.path.realpath(root)]
    while pending:
        target = pending.pop()
        if target not in seen and target not in above:
            enter(target, pending)
    return images


@posix
@pytest.mark.parametrize("seed", range(25))
def test_random_trees(seed: int, folder: Path) -> None:
    plant(random.Random(seed), folder)
    write(folder / "one.png", PNG)
    with as_a_user():
        source = opened(folder)
        content = [item.content for item in source.items()]
        model = expected(folder)
    assert source.total == len(content)
    found = Counter(one if isinstance(one, bytes) else None for one in content)
    for path in (folder, folder.parent / "outside"):
        for parent, _, _ in os.walk(path):
            os.chmod(parent, stat.S_IRWXU)
    assert found == model
    ids = [item.id for item in opened(folder).items()]
    assert len(set(ids)) == len(ids)
    for line in source.skipped.lines():
        assert line.isprintable()


# --- archives -------------------------------------------------------------------------------------


def test_links_in_a_tar(tmp_path: Path) -> None:
    path = tmp_path / "pics.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "./cat/a.png", b"cat")
        for name, kind, target in [
            ("./cat/hard.png", tarfile.LNKTYPE, "./cat/a.png"),
            ("./dog/soft.png", tarfile.SYMTYPE, "../cat/a.png"),
            ("./dog/twice.png", tarfile.SYMTYPE, "soft.png"),
            ("./nothing.png", tarfile.LNKTYPE, "nowhere.png"),
            ("./soft-nothing.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("./round.png", tarfile.SYMTYPE, "round.png"),
            ("./fifo.png", tarfile.FIFOTYPE, ""),
            ("./null.png", tarfile.CHRTYPE, ""),
            ("./folder", tarfile.DIRTYPE, ""),
            ("./to-folder", tarfile.SYMTYPE, "folder"),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    source = opened(path)
    assert {name: item.content for name, item in items(source).items()} == dict.fromkeys(
        ["cat/a.png", "cat/hard.png", "dog/soft.png", "dog/twice.png"], b"cat"
    )
    assert source.skipped.counts == {
        Kind.BROKEN_LINK: 3,
        Kind.SPECIAL: 2,
        Kind.ARCHIVE_LINK: 1,
    }


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.mark.slow
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_entry_that_holds_more_than_it_says(tmp_path: Path, compression: int) -> None:
    path = tmp_path / "pics.zip"
    size = 100 * 1024 * 1024
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.png", b"fine")
        archive.writestr("b.png", random.Random(0).randbytes(500_000))
        with archive.open("bomb.png", "w", force_zip64=False) as file:
            for _ in range(size // (1 << 20)):
                file.write(bytes(1 << 20))
    content = path.read_bytes()
    lie = content.replace(size.to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    assert lie != content
    path.write_bytes(lie)
    source = opened(path)
    tracemalloc.start()
    found = items(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found["a.png"].content == b"fine"
    assert isinstance(found["bomb.png"].content, ImageError)
    assert isinstance(found["b.png"].content, bytes)
    assert peak < 50 * 1024 * 1024


# --- names ----------------------------------------------------------------------------------------

LEGACY = [
    ("cp437", "Käse/été-2.jpg"),
    ("cp1252", "Käse/été-2.jpg"),
    ("cp1252", "Fotos aus Österreich/smørrebrød.jpg"),
    ("cp932", "犬/写真.jpg"),
    ("cp932", "ソース/表示.jpg"),
    ("cp866", "кот/собака.jpg"),
    ("utf-8", "犬/été.jpg"),
    ("utf-8", "Käse/кот.jpg"),
]


def raw_zip(path: Path, names: list[bytes], contents: list[bytes] | None = None) -> Path:
    """A zip whose names are these bytes, without the flag for UTF-8."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            placeholder = f"{number:0{len(name)}d}"
            archive.writestr(placeholder, contents[number] if contents else name)
    content = path.read_bytes()
    for number, name in enumerate(names):
        content = content.replace(f"{number:0{len(name)}d}".encode(), name)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("encoding", "name"), LEGACY)
def test_names_in_a_zip_are_readable_whatever_they_are_written_in(
    tmp_path: Path, encoding: str, name: str
) -> None:
    path = raw_zip(tmp_path / "x.zip", [name.encode(encoding), b"other/a.jpg"], [b"1", b"2"])
    found = items(opened(path))
    assert found[name].label == name.partition("/")[0]
    assert found[name].content == b"1"
    # And the same as in a folder of these files.
    write(tmp_path / "x" / name)
    assert items(opened(tmp_path / "x"))[name].id == found[name].id


@posix
@pytest.mark.parametrize(("encoding", "name"), LEGACY)
def test_names_in_folders_and_tars_are_readable(tmp_path: Path, encoding: str, name: str) -> None:
    raw = os.fsdecode(name.encode(encoding))
    write(tmp_path / "x" / raw)
    write(tmp_path / "x" / "other" / "a.jpg")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "x", "x")
    for path in (tmp_path / "x", tmp_path / "x.tar"):
        found = items(opened(path))
        assert found[name].label == name.partition("/")[0]


def test_backslashes_in_a_zip_are_slashes(tmp_path: Path) -> None:
    names = [rb"animals\cat\a.png", rb"animals\dog\b.png"]
    found = items(opened(raw_zip(tmp_path / "x.zip", names)))
    assert {name: item.label for name, item in found.items()} == {
        "animals/cat/a.png": "cat",
        "animals/dog/b.png": "dog",
    }
    assert found["animals/cat/a.png"].id == "x/animals/cat/a.png"
    assert found["animals/cat/a.png"].former_id == "x/animals%5Ccat%5Ca.png"


def test_the_unicode_path_of_info_zip_wins(tmp_path: Path) -> None:
    name = "犬/кот.jpg".encode()
    extra = b"up" + (5 + len(name)).to_bytes(2, "little") + b"\1" + bytes(4) + name
    member = zipfile.ZipInfo("___.jpg")
    member.extra = extra
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(member, b"1")
    content = (tmp_path / "x.zip").read_bytes().replace(b"___.jpg", b"\x8c\xa2_.jpg")
    (tmp_path / "x.zip").write_bytes(content)
    assert list(items(opened(tmp_path / "x.zip"))) == ["犬/кот.jpg"]


@posix
def test_one_name_in_two_spellings_is_one_id_and_one_label(tmp_path: Path) -> None:
    name = "Käse/é.png"
    other = unicodedata.normalize("NFD", name)
    ids = set()
    for number, spelling in enumerate([name, other]):
        for kind in ("folder", "zip", "tar"):
            (tmp_path / f"{number}{kind}").mkdir()
            path = pack(tmp_path / f"{number}{kind}", {spelling: b"1"}, kind)
            [item] = opened(path).items()
            ids.add(item.id)
            assert item.label == "Käse"
            assert item.metadata["path"] == name
            if spelling is name:
                assert item.former_id is None
            else:  # what earlier versions called it
                assert item.former_id == "pics/Ka%CC%88se/e%CC%81.png"
    assert ids == {"pics/K%C3%A4se/%C3%A9.png"}


@posix
def test_two_files_whose_names_look_alike(tmp_path: Path) -> None:
    contents = {"é.png": b"composed", unicodedata.normalize("NFD", "é.png"): b"decomposed"}
    for kind in ("folder", "zip", "tar"):
        (tmp_path / kind).mkdir()
        source = opened(pack(tmp_path / kind, contents, kind))
        [item] = source.items()
        assert item.content == b"composed"
        assert source.skipped.counts == {Kind.SAME_NAME: 1}


@posix
def test_a_folder_whose_own_name_is_in_a_legacy_encoding(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode("Käse".encode("cp1252"))
    write(path / "a.png")
    source = opened(path)
    [item] = source.items()
    assert source.name.endswith("Käse")
    assert item.metadata["source"] == "Käse"
    assert item.id == "K%E4se/a.png"


def test_control_characters_are_not_sent_to_a_terminal(tmp_path: Path) -> None:
    write(tmp_path / "x" / "a\x1b[31m\nfinished.txt")
    write(tmp_path / "x" / "a.png")
    [line] = opened(tmp_path / "x").skipped.lines()
    assert r"a\x1b[31m\nfinished.txt" in line


def test_two_names_of_one_path_in_a_tar(tmp_path: Path) -> None:
    source = opened(pack(tmp_path, {"./cat/a.png": b"1", "cat/a.png": b"2"}, "tar"))
    assert len(list(source.items())) == source.total == 1
    assert source.skipped.counts == {Kind.SAME_NAME: 1}
