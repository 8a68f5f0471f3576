"""The worker's check of this machine and the store."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_search.settings import Settings, load_settings
from tests.support.indexes import FakeEmbedder, fill, use_store
from tests.support.pinecone import API_KEY, READING_KEY, PineconeEmulator
from tests.support.processes import run
from worker import doctor
from worker.doctor import Finding, as_line, examine

CHECKS = ["settings", "clock", "disk", "gpu", "rights", "index", "records", "weights"]


@pytest.fixture(autouse=True)
def _without_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_weights", lambda _: "left out")


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[PineconeEmulator]:
    with PineconeEmulator() as emulator:
        monkeypatch.setenv("IMAGE_SEARCH_STORE", "pinecone")
        monkeypatch.setenv("IMAGE_SEARCH_PINECONE_HOST", emulator.host)
        monkeypatch.setenv("PINECONE_API_KEY", API_KEY)
        yield emulator


def examined(settings: Settings) -> dict[str, Finding]:
    findings = list(examine(settings))
    assert [finding.check for finding in findings] == CHECKS
    assert all(API_KEY not in as_line(finding) for finding in findings)
    assert all("\n" not in as_line(finding) for finding in findings)
    return {finding.check: finding for finding in findings}


@pytest.mark.parametrize("store", ["embedded", "pinecone"])
def test_all_is_well_and_nothing_stays(
    store: str, monkeypatch: pytest.MonkeyPatch, fake_embedder: FakeEmbedder
) -> None:
    with use_store(store, monkeypatch):
        settings = load_settings()
        index = fill(settings, fake_embedder)
        files = {path for path in settings.local_dir.rglob("*") if "scratch" in path.name}
        found = examined(settings)
        assert all(finding.is_well for finding in found.values()), found
        assert "48 images, cosine" in found["index"].text
        assert "removed" in found["records"].text
        assert files == {path for path in settings.local_dir.rglob("*") if "scratch" in path.name}
        assert index.count() == 48
        index.close()


def test_before_the_first_ingest_it_says_what_to_do(settings: Settings) -> None:
    found = examined(settings)
    assert all(finding.is_well for finding in found.values())
    assert "python -m worker ingest" in found["index"].text


@pytest.mark.slow
def test_the_scratch_record_goes_from_pinecone(
    emulator: PineconeEmulator, fake_embedder: FakeEmbedder
) -> None:
    emulator.put_index("images")
    fill(load_settings(), fake_embedder).close()
    before = {
        name: len(space.latest) for name, space in emulator.indexes["images"].namespaces.items()
    }
    emulator.lag = 0.3
    assert examined(load_settings())["records"].is_well
    after = {
        name: len(space.latest)
        for name, space in emulator.indexes["images"].namespaces.items()
        if space.latest
    }
    assert after == before
    assert emulator.count("scratch") == 0


@pytest.mark.slow
def test_what_fails_is_told_with_what_to_do(
    emulator: PineconeEmulator, fake_embedder: FakeEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = examined(load_settings())
    assert "ingest" in found["index"].text
    assert not found["records"].is_well
    emulator.put_index("images")
    fill(load_settings(), fake_embedder).close()
    monkeypatch.setenv("PINECONE_API_KEY", "wrong")
    found = examined(load_settings())
    for check in ("index", "records"):
        assert not found[check].is_well
        assert "check PINECONE_API_KEY" in found[check].text
    emulator.rights[READING_KEY] = {"control", "read"}
    monkeypatch.setenv("PINECONE_API_KEY", READING_KEY)
    found = examined(load_settings())
    assert found["index"].is_well
    assert "permission" in found["records"].text
    monkeypatch.delenv("PINECONE_API_KEY")
    assert "PINECONE_API_KEY is not set" in examined(load_settings())["index"].text


NOT_TRIED = "look indexes up: no; read: not tried; write: not tried"
HOST_GIVEN = "look indexes up: not needed with IMAGE_SEARCH_PINECONE_INDEX_HOST; "


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rights", "with_host", "line", "advice"),
    [
        ("control read write", False, "look indexes up: yes; read: yes; write: yes", None),
        ("control read", False, "look indexes up: yes; read: yes; write: no", "only searches"),
        ("control write", False, "look indexes up: yes; read: no; write: yes", "Nothing works"),
        ("control", False, "look indexes up: yes; read: no; write: no", "Nothing works"),
        ("read write", False, NOT_TRIED, "IMAGE_SEARCH_PINECONE_INDEX_HOST"),
        ("", False, NOT_TRIED, "IMAGE_SEARCH_PINECONE_INDEX_HOST"),
        ("read write", True, f"{HOST_GIVEN}read: yes; write: yes", None),
        ("read", True, f"{HOST_GIVEN}read: yes; write: no", "only searches"),
        ("write", True, f"{HOST_GIVEN}read: no; write: yes", "Nothing works"),
        ("", True, f"{HOST_GIVEN}read: no; write: no", "Nothing works"),
    ],
)
def test_the_rights_of_the_key_are_told(
    emulator: PineconeEmulator,
    monkeypatch: pytest.MonkeyPatch,
    rights: str,
    *,
    with_host: bool,
    line: str,
    advice: str | None,
) -> None:
    emulator.put_index("images")
    emulator.rights["few rights"] = set(rights.split())
    monkeypatch.setenv("PINECONE_API_KEY", "few rights")
    if with_host:
        monkeypatch.setenv("IMAGE_SEARCH_PINECONE_INDEX_HOST", f"{emulator.host}/data/images")
    found = next(one for one in examine(load_settings()) if one.check == "rights")
    assert found.text.startswith(line)
    assert found.is_well == (advice is None)
    assert advice is None or advice in found.text
    assert with_host == (emulator.count("/indexes") == 0)
    assert not emulator.indexes["images"].namespaces, "nothing was written"


def test_without_an_index_rights_to_data_are_not_tried(emulator: PineconeEmulator) -> None:
    assert emulator.indexes == {}
    found = examined(load_settings())["rights"]
    assert found.is_well
    assert found.text.endswith("read: not tried; write: not tried, as there is no index yet")


def test_the_embedded_store_needs_no_rights(settings: Settings) -> None:
    assert examined(settings)["rights"].text.startswith("none needed")


def test_a_store_that_loses_records_is_found_out(
    emulator: PineconeEmulator, fake_embedder: FakeEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.put_index("images")
    fill(load_settings(), fake_embedder).close()
    # An SDK that spells spaces as it did.
    monkeypatch.setattr("image_search.stores.pinecone.connection._spell_spaces", _nothing)
    found = examined(load_settings())["records"]
    assert not found.is_well
    assert "its id does not find it" in found.text


async def _nothing(_: object) -> None:
    pass


def test_a_clock_before_the_program_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "__init__.py"
    file.touch()
    monkeypatch.setattr("image_search.__file__", str(file))
    os.utime(file, (4e9, 4e9))
    [clock] = [one for one in examine(load_settings()) if one.check == "clock"]
    assert not clock.is_well
    assert "set it" in clock.text


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.setattr(doctor, "_LEAST_DISK", 1 << 60)
    found = examined(settings)["disk"]
    assert not found.is_well
    assert "IMAGE_SEARCH_DATA_DIR" in found.text


@pytest.mark.long
def test_the_command_ends_with_0_or_1(emulator: PineconeEmulator) -> None:
    assert emulator.indexes == {}
    code, out, err = run("worker", "doctor", IMAGE_SEARCH_STORE="embedded")
    assert (code, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()] == [["ok", check] for check in CHECKS]
    code, out, err = run("worker", "doctor", PINECONE_API_KEY="wrong secret")
    assert (code, err) == (1, "")
    assert "FAILED  records" in out
    assert "wrong secret" not in out
