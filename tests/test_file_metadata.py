"""What image files say of themselves, read from files that Pillow writes, and from hostile ones."""

import io
import random
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image, TiffImagePlugin

from image_search import file_metadata, images
from image_search.decoding import Decoder, is_plain
from image_search.index import VectorIndex
from image_search.manifest import Manifest
from image_search.settings import load_settings
from image_search.stores import create_index
from image_search.values import FileMetadata
from tests.support.images import encode
from tests.support.indexes import FakeEmbedder, records
from worker.ingest import Summary, ingest
from worker.sources import open_source

MANY = 10_000_000
TAKEN = int(datetime(2024, 7, 14, 18, 3, 22, tzinfo=UTC).timestamp())


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(MANY, processes=1) as decoder:
        yield decoder


def picture(size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.radial_gradient("L").resize(size).convert("RGB")


def exif(**main: Any) -> Image.Exif:
    made = Image.Exif()
    for name, value in main.items():
        made[ExifTags.Base[name]] = value
    return made


def photo_exif() -> Image.Exif:
    made = exif(Make="Canon", Model="Canon EOS R6", Orientation=6, DateTime="2025:01:01 00:00:00")
    made.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:07:14 18:03:22"
    made.get_ifd(ExifTags.IFD.GPSInfo).update(
        {
            ExifTags.GPS.GPSLatitudeRef: "S",
            ExifTags.GPS.GPSLatitude: (33.0, 51.0, 31.2),
            ExifTags.GPS.GPSLongitudeRef: "E",
            ExifTags.GPS.GPSLongitude: (151.0, 12.0, 51.5),
        }
    )
    return made


def tiff_tags() -> TiffImagePlugin.ImageFileDirectory_v2:
    """The same for Pillow's writer of TIFF."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in photo_exif().items():
        tags[tag] = value
    for folder in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        tags[folder] = dict(photo_exif().get_ifd(folder))
    return tags


def fields_of(content: bytes, which: FileMetadata = "gps") -> dict[str, Any]:
    return file_metadata.chosen(images.decode(content, max_pixels=MANY, min_side=32).info, which)


PHOTO = {
    "width": 40,
    "height": 60,
    "taken": TAKEN,
    "camera": "Canon EOS R6",
    "latitude": -33.858667,
    "longitude": 151.214306,
}


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_photo_tells_of_itself_whoever_decodes_it(format_: str, decoder: Decoder) -> None:
    options = {"tiffinfo": tiff_tags()} if format_ == "TIFF" else {"exif": photo_exif()}
    content = encode(picture(), format_, **options)
    expected = {**PHOTO, "format": format_.lower()}
    assert fields_of(content) == expected
    image = decoder.decode(content, min_side=32)
    assert image.info == expected
    assert image.size == (40, 60)


def test_a_file_is_read_in_a_process_of_its_own_as_well(decoder: Decoder) -> None:
    content = encode(picture((2400, 1800)), "PNG", exif=photo_exif())
    assert not is_plain(content, 32)
    expected = {**PHOTO, "format": "png", "width": 1800, "height": 2400}
    assert decoder.decode(content, min_side=32).info == expected


def test_the_size_is_that_of_the_whole_picture() -> None:
    found = fields_of(encode(picture((1600, 1200)), "JPEG"))
    assert found == {"width": 1600, "height": 1200, "format": "jpeg"}


def test_a_phone_s_heic_tells_of_itself(decoder: Decoder) -> None:
    pi_heif = pytest.importorskip("pi_heif")
    from tests.support import SHARED

    file = SHARED / "data" / "files" / "iphone.heic"
    if not file.exists():
        pytest.skip("the file is not at hand")
    found = decoder.decode(file.read_bytes(), min_side=32).info
    size = pi_heif.open_heif(file.read_bytes()).size
    assert (found["width"], found["height"], found["format"]) == (*size, "heif")


@pytest.mark.parametrize(
    ("which", "left"),
    [
        ("none", set()),
        ("default", {"width", "height", "format", "taken", "camera"}),
        ("gps", {"width", "height", "format", "taken", "camera", "latitude", "longitude"}),
    ],
)
def test_the_setting_says_which(which: FileMetadata, left: set[str]) -> None:
    assert fields_of(encode(picture(), "JPEG", exif=photo_exif()), which).keys() == left


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("NIKON CORPORATION", "NIKON D80", "NIKON D80"),
        ("Apple", "iPhone 15 Pro", "Apple iPhone 15 Pro"),
        ("  Canon\0\0rest", "", "Canon"),
        ("", "Pixel  8\n", "Pixel 8"),
        ("\x1b[31mred", "x" * 500, "[31mred " + "x" * 92),
        ("Müller", "1", "Müller 1"),
        ("", "", None),
    ],
)
def test_cameras_are_named_once_and_cleanly(make: str, model: str, camera: str | None) -> None:
    tags = exif(Make=make.encode(), Model=model.encode())
    assert fields_of(encode(picture(), "JPEG", exif=tags)).get("camera") == camera


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024:07:14 18:03:22", (2024, 7, 14, 18, 3, 22)),
        ("2024-07-14T18:03:22.25", (2024, 7, 14, 18, 3, 22)),
        ("1899:12:31 00:00", (1899, 12, 31)),
        ("2024:07:14", (2024, 7, 14)),
        ("0000:00:00 00:00:00", None),
        ("2024:13:40 99:99:99", None),
        ("    :  :     :  :  ", None),
        ("yesterday", None),
    ],
)
@pytest.mark.parametrize("tag", ["DateTimeOriginal", "DateTimeDigitized", "DateTime"])
def test_dates_are_seconds(text: str, moment: Any, tag: str) -> None:
    found = fields_of(encode(picture(), "JPEG", exif=exif(**{tag: text})))
    expected = moment and datetime(*moment).replace(tzinfo=UTC).timestamp()
    assert found.get("taken") == expected


@pytest.mark.parametrize(
    ("latitude", "longitude"),
    [
        ((91.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((0.0, 0.0, 0.0), (181.0, 0.0, 0.0)),
        ((TiffImagePlugin.IFDRational(1, 0), 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((1.0, 2.0), (0.0, 0.0, 0.0)),
    ],
)
def test_impossible_places_are_left_out(latitude: Any, longitude: Any) -> None:
    tags = photo_exif()
    tags.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = latitude
    tags.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLongitude] = longitude
    found = fields_of(encode(picture(), "JPEG", exif=tags))
    assert "latitude" not in found
    assert "longitude" not in found
    assert found["taken"] == TAKEN


# --- hostile files ---


def jpeg_with(tiff: bytes) -> bytes:
    """A JPEG file with this in its EXIF segment."""
    segment = b"Exif\0\0" + tiff
    head = b"\xff\xd8\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    return head + encode(picture(), "JPEG")[2:]


def hostile_tiffs() -> dict[str, bytes]:
    header = b"II*\0" + struct.pack("<I", 8)

    def main(kind: int, offset: int, tag: int = ExifTags.IFD.Exif) -> bytes:
        return header + struct.pack("<HHHII", 1, tag, kind, 1, offset) + bytes(4)

    many = 5000
    entries = b"".join(struct.pack("<HHII", n, 7, 60_000, 0) for n in range(many))
    few = b"".join(struct.pack("<HHII", n, 7, 2**31, 0) for n in range(20))
    return {
        "many entries, each as long as the file": main(4, 26) + struct.pack("<H", many) + entries,
        "entries longer than the file": main(4, 26) + struct.pack("<H", 20) + few,
        "a folder in itself": main(4, 8),
        "a folder beyond the end": main(4, 2**32 - 1),
        "a folder at a text": main(2, 26),
        "a folder at nothing": main(4, 0),
        "no entries at all": header,
        "only a beginning": b"II*\0",
        "another kind of file": b"GIF89a" + bytes(60),
    }


@pytest.mark.parametrize("name", hostile_tiffs())
def test_hostile_exif_data_costs_only_itself(name: str, decoder: Decoder) -> None:
    content = jpeg_with(hostile_tiffs()[name])
    plain = {"width": 60, "height": 40, "format": "jpeg"}
    assert fields_of(content) == plain
    assert decoder.decode(content, min_side=32).info == plain


def test_damaged_exif_data_never_stops_a_picture() -> None:
    rng = random.Random(0)
    whole = photo_exif().tobytes().removeprefix(b"Exif\0\0")
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        content = jpeg_with(bytes(damaged[: rng.randrange(8, len(damaged) + 1)]))
        found = fields_of(content)
        assert found["format"] == "jpeg"
        assert file_metadata.checked(found) == found


def test_what_a_decoding_process_sends_is_checked() -> None:
    sent = {
        "width": True,
        "height": float("nan"),
        "format": "x" * 1000,
        "taken": 10**400,
        "camera": 5,
        "latitude": 1.5,
        "sha256": "forged",
    }
    assert file_metadata.checked(sent) == {"latitude": 1.5}
    assert file_metadata.checked([1]) == {}


# --- ingest ---


@pytest.fixture
def index(fake_embedder: FakeEmbedder) -> VectorIndex:
    manifest = Manifest.new(fake_embedder.model, "cosine", "__default__")
    return create_index(load_settings(), manifest)


def run(
    folder: Path, index: VectorIndex, embedder: FakeEmbedder, which: FileMetadata = "default"
) -> Summary:
    source = open_source(str(folder), data_dir=folder.parent)
    return ingest(source, index, embedder, load_settings(metadata=which))


def test_another_setting_changes_records_without_embedding_again(
    index: VectorIndex, fake_embedder: FakeEmbedder, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(encode(picture(), "JPEG", exif=photo_exif()))
    (folder / "b.png").write_bytes(encode(picture((90, 50)), "PNG"))
    assert run(folder, index, fake_embedder, "none").embedded == 2
    before = records(index)
    assert before["photos/a.jpg"].metadata.keys() == {"source", "path", "sha256"}
    expected: dict[FileMetadata, set[str]] = {
        "default": {"width", "height", "format", "taken", "camera", "modified"},
        "none": set(),
    }
    expected["gps"] = expected["default"] | {"latitude", "longitude"}
    for which in ("default", "gps", "default", "none"):
        summary = run(folder, index, fake_embedder, which)
        assert (summary.embedded, summary.unreadable) == (0, {})
        assert summary.relabelled >= 1
        found = records(index)["photos/a.jpg"].metadata
        assert found.keys() - {"source", "path", "sha256"} == expected[which]
        for name, value in before["photos/a.jpg"].metadata.items():
            assert found[name] == value
        again = run(folder, index, fake_embedder, which)
        assert (again.embedded, again.relabelled, again.unchanged) == (0, 0, 2)
    assert fake_embedder.embedded == 2


def test_the_time_of_files_is_kept_of_folders_and_archives(
    index: VectorIndex, fake_embedder: FakeEmbedder, tmp_path: Path
) -> None:
    import os
    import tarfile
    import zipfile

    folder = tmp_path / "f"
    folder.mkdir()
    file = folder / "a.png"
    file.write_bytes(encode(picture(), "PNG"))
    moment = int(datetime(2020, 2, 29, 12, 30, 10, tzinfo=UTC).timestamp())
    os.utime(file, (moment, moment))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        info = zipfile.ZipInfo("a.png", (2020, 2, 29, 12, 30, 10))
        archive.writestr(info, file.read_bytes())
        archive.writestr(zipfile.ZipInfo("never.png", (1980, 0, 0, 0, 0, 0)), file.read_bytes())
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(file, "a.png")
    for name in ("f", "z.zip", "t.tar", "f/a.png"):
        run(tmp_path / name, index, fake_embedder)
    found = {id_: record.metadata.get("modified") for id_, record in records(index).items()}
    assert found == {"f/a.png": moment, "z/a.png": moment, "z/never.png": None, "t/a.png": moment}


def test_columns_of_tables_win_over_what_files_say(
    index: VectorIndex, fake_embedder: FakeEmbedder, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(encode(picture(), "PNG"))
    table = tmp_path / "table.csv"
    table.write_text("path,label,width,camera\na.png,cat,7,mine\n")
    run(table, index, fake_embedder)
    [record] = records(index).values()
    changed = int((tmp_path / "a.png").stat().st_mtime)
    expected = {"width": 7, "height": 40, "format": "png", "camera": "mine", "modified": changed}
    assert {name: record.metadata[name] for name in expected} == expected
    assert run(table, index, fake_embedder).unchanged == 1


def test_bytes_that_pillow_cannot_name_are_no_field() -> None:
    out = io.BytesIO()
    picture().save(out, "BMP")
    assert fields_of(out.getvalue()) == {"width": 60, "height": 40, "format": "bmp"}
