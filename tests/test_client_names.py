"""Ids as names: what the worker encodes is what people read again."""

import unicodedata
from pathlib import Path

import pytest

from image_search_client.names import readable
from worker.sources import names as names_of_the_worker
from worker.sources import open_source

NAMES = [
    "été-2.jpg",
    "e\u0301te\u0301.jpg",
    "猫 (1).png",
    "😀.png",
    "50%.jpg",
    "%41.jpg",
    'what? "this": a|b*<c>.png',
    "plain & simple~1.png",
]


def test_names_of_files_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "Мои фото"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(b"")
    ids = [item.id for item in open_source(str(folder), data_dir=tmp_path).items()]
    assert all(id_.isascii() for id_ in ids)
    # The worker makes one name of all spellings of é.
    names = {unicodedata.normalize("NFC", name) for name in NAMES}
    for to_name in (readable, names_of_the_worker.readable):
        assert {to_name(id_) for id_ in ids} == {f"Мои фото/{name}" for name in names}


NO_NAMES = [
    "a%2Fb",  # not the worker's: it never encodes a slash
    "%41",
    "%c3%a9",
    "100%",
    "%FF%C3",  # Latin-1
    "%C0%AF",  # overlong
    "%ED%A0%80",  # a surrogate
    "%0A%1B[2J",
    "%E2%80%AEgpj.exe",  # right-to-left override
    "%E2%80%8B",  # zero-width space
    "%C2%A0",
]


@pytest.mark.parametrize("id_", NO_NAMES)
def test_what_is_no_name_stays_as_it_is(id_: str) -> None:
    assert readable(id_) == id_
    assert names_of_the_worker.readable(id_).isprintable()
