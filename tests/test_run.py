"""`make run` and the order of things: what is checked first, and what never mixes."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from image_search import __version__
from image_search.settings import Settings
from image_search.stores import open_index
from service import listening
from tests.support import ROOT
from tests.support.images import folder_of
from tests.support.processes import run


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A Python that writes down what it is called with, in place of the real one."""
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    python = folder / "python"
    python.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        'with open(os.environ["CALLS"], "a") as file:\n'
        '    print("|".join(sys.argv[1:]), file=file)\n'
        'sys.exit(os.environ.get("FAILS", "-") in sys.argv)\n'
    )
    python.chmod(0o755)
    return folder


def make(programs: Path, *arguments: str, **environ: str) -> tuple[int, list[str], str]:
    calls = programs / "calls"
    calls.write_text("")
    process = subprocess.run(
        [
            *("make", "-C", str(ROOT), f"PYTHON={programs / 'python'}"),
            *(f"VENV={programs.parent}", f"BIN={programs}", *arguments),
        ],
        env={**os.environ, "CALLS": str(calls), **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    return process.returncode, calls.read_text().splitlines(), process.stdout


def make_run(programs: Path, *variables: str, **environ: str) -> tuple[int, list[str], str]:
    """`make run` in an environment that has all it needs."""
    (programs.parent / ".running").touch()
    return make(programs, "run", *variables, **environ)


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
    code, calls, _ = make_run(programs, FAILS="--check")
    assert code != 0
    assert calls[-1] == "-m|service|--check"


def steps(calls: list[str]) -> list[str]:
    """Those calls that look at the port, install, and run."""
    kinds = ("service", "worker", "tools/install.py")
    return [call for call in calls if any(kind in call for kind in kinds)]


def test_make_run_looks_at_the_port_before_it_installs(programs: Path) -> None:
    code, calls, _ = make(programs, "run", FAILS="service.listening")
    assert code != 0
    assert steps(calls) == ["-m|service.listening"]
    assert not (programs.parent / ".running").exists()


def test_make_run_installs_what_running_needs(programs: Path) -> None:
    code, calls, _ = make(programs, "run")
    assert code == 0
    assert steps(calls) == [
        "-m|service.listening",
        "tools/install.py|requirements-run.lock",
        "-m|service|--check",
        "-m|worker|ingest|auto",
        "-m|service",
    ]
    # Once; the tests install the rest into the same environment, which running takes then.
    assert "tools/install.py" not in "".join(make(programs, "run")[1])
    assert "tools/install.py|requirements.lock" in make(programs, "setup")[1]
    (programs.parent / ".running").unlink()
    assert "tools/install.py" not in "".join(make(programs, "run")[1])


def test_a_failed_installation_is_not_taken_for_done(programs: Path) -> None:
    code, calls, _ = make(programs, "run", FAILS="tools/install.py")
    assert code != 0
    assert steps(calls)[-1] == "tools/install.py|requirements-run.lock"
    assert not (programs.parent / ".running").exists()


def test_what_running_needs_is_locked_as_for_development() -> None:
    pattern = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)
    run, everything = (
        set(pattern.findall((ROOT / name).read_text()))
        for name in ("requirements-run.lock", "requirements.lock")
    )
    assert run < everything
    names = {name for name, _ in run}
    assert {"fastapi", "av", "msgspec", "openvino"} <= names
    assert not names & {"tensorflow-cpu", "tensorflow", "pytest", "uv"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("project", "packages"),
    [(".", ["image_search", "service", "worker"]), ("client", ["image_search_client"])],
)
def test_an_installation_has_every_file(tmp_path: Path, project: str, packages: list[str]) -> None:
    copy = tmp_path / "copy"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in packages:
        shutil.copytree(ROOT / project / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "VERSION"):
        shutil.copy(ROOT / project / name, copy / name)
    build = ["uv", "build", "--wheel", "--offline", "--no-build-isolation", "--quiet"]
    done = subprocess.run(
        [*build, "--python", sys.executable, "--out-dir", tmp_path, copy],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {path for name in packages for path in (copy / name).rglob("*") if path.is_file()}
    assert installed == {str(path.relative_to(copy)) for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image-search-worker", "image-search-service"])
def test_the_commands_run(name: str) -> None:
    done = run_command(name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {name}")
    assert run_command(name, "--version").stdout == f"image-search {__version__}\n"
    done = run_command(name, "--wrong")
    assert done.returncode == 2
    assert f"{name}: error:" in done.stderr


@pytest.mark.slow
def test_the_command_of_the_service_says_what_is_not_installed() -> None:
    done = run_command("image-search-service", "--check", without="fastapi")
    assert done.returncode == 1
    assert done.stderr == (
        "error: fastapi is not installed; to serve: "
        "uv tool install '.[service,video]' in a checkout\n"
    )


@pytest.mark.slow
def test_an_installed_command_names_the_others(tmp_path: Path) -> None:
    environ = {"IMAGE_SEARCH_DATA_DIR": str(tmp_path), "IMAGE_SEARCH_STORE": "embedded"}
    done = run_command("image-search-worker", "sources", **environ)
    assert done.returncode == 1
    assert "ingest images first, image-search-worker ingest SOURCE" in done.stderr
    assert "python -m" not in done.stderr


def run_command(
    name: str, *arguments: str, without: str = "", **environ: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command as the file does that an installation makes of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"][name].partition(":")
    program = (
        f"import sys; {without and f'sys.modules[{without!r}] = None; '}"
        f"sys.argv[0] = {name!r}; from {module} import {function} as main; sys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_before_anything_is_installed_the_address_is_that_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[tuple[str, int]] = []

    def note(host: str, port: int) -> socket.socket:
        tried.append((host, port))
        return socket.socket()

    monkeypatch.setattr(listening, "listen", note)
    assert listening.main() == 0
    assert tried == [(Settings.model_fields["host"].default, Settings.model_fields["port"].default)]


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


@pytest.mark.long
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


@pytest.mark.long
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
