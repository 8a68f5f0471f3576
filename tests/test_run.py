"""`make run` and the order of things: what is checked first, and what never mixes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from image_search.settings import Settings
from image_search.stores import open_index
from tests.support import ROOT
from tests.support.images import folder_of
from tests.support.processes import run


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A Python that writes down what it is called with, in place of the real one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    python = folder / "python"
    python.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        'with open(os.environ["CALLS"], "a") as file:\n'
        '    print("|".join(sys.argv[1:]), file=file)\n'
        'sys.exit(int(os.environ.get("CHECK_EXIT", "0")) if "--check" in sys.argv else 0)\n'
    )
    python.chmod(0o755)
    return folder


def make_run(programs: Path, *variables: str, **environ: str) -> tuple[int, list[str], str]:
    calls = programs / "calls"
    calls.touch()
    process = subprocess.run(
        ["make", "-C", str(ROOT), "-o", "setup", "run", f"BIN={programs}", *variables],
        env={**os.environ, "CALLS": str(calls), **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    return process.returncode, calls.read_text().splitlines(), process.stdout


@pytest.mark.parametrize(
    "source", ["auto", "my photos", "it's", 'a "quoted" one', "a;b & c", "$HOME", "Käse (1)"]
)
def test_make_run_takes_any_name(programs: Path, source: str) -> None:
    variables = [] if source == "auto" else [f"SOURCE={source}"]
    code, calls, out = make_run(programs, *variables)
    assert code == 0
    assert f"-m|worker|ingest|{source}" in calls
    assert calls[-1] == "-m|service"
    assert "IMAGE_SEARCH_INDEX=photos" in out


def test_make_run_looks_at_the_port_before_it_ingests(programs: Path) -> None:
    code, calls, _ = make_run(programs, CHECK_EXIT="1")
    assert code != 0
    assert calls == ["-m|service|--check"]


@pytest.mark.slow
def test_the_service_says_whether_its_port_is_free(free_port: int) -> None:
    assert run("service", "--check", IMAGE_SEARCH_PORT=str(free_port))[0] == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        code, _, err = run("service", "--check", IMAGE_SEARCH_PORT=str(free_port))
    assert code == 1
    assert f"port {free_port}" in err
    assert "IMAGE_SEARCH_PORT" in err


@pytest.mark.slow
def test_the_sample_does_not_mix_with_other_images(settings: Settings, tmp_path: Path) -> None:
    folder = str(folder_of(tmp_path / "sample-photos", 3))
    code, out, _ = run("worker", "ingest", "sample", "--limit", "5")
    assert code == 0
    assert "IMAGE_SEARCH_INDEX=photos" in out
    code, _, err = run("worker", "ingest", folder)
    assert code == 2
    assert "--index photos" in err
    assert open_index(settings).count() == 5
    # Each is at home in an index of its own.
    assert run("worker", "ingest", folder, "--index", "photos")[0] == 0
    code, _, err = run("worker", "ingest", "sample", "--index", "photos")
    assert code == 2
    assert "--index sample" in err
    assert run("worker", "ingest", folder, "--index", "photos")[0] == 0
    assert run("worker", "ingest", "sample", "--limit", "5")[0] == 0


@pytest.mark.slow
def test_an_index_that_has_both_already_goes_on(settings: Settings, tmp_path: Path) -> None:
    folder = str(folder_of(tmp_path / "photos", 3))
    assert run("worker", "ingest", "sample", "--limit", "5")[0] == 0
    assert run("worker", "ingest", folder, "--index", "photos")[0] == 0
    with open_index(settings.model_copy(update={"index": "photos"})) as photos:
        records = list(photos.fetch(photos.list_ids().ids).values())
    with open_index(settings) as index:
        index.upsert(records)
    for source in (folder, "sample"):
        assert run("worker", "ingest", source, "--limit", "5")[0] == 0
