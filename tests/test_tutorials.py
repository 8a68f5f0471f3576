"""The tutorials as a reader follows them: each command is run, and prints what they show."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx2
import nbclient
import nbformat
import numpy as np
import pytest

from tests.support import ROOT
from tests.support.images import draw
from tests.support.indexes import use_store
from tests.support.servers import find_free_port
from tests.support.videos import write_video
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

KINDS: Final = ("boat", "castle", "flower", "tree")
TUTORIALS: Final = ROOT / "docs" / "tutorial"
# A command, its continued lines, and what it prints.
STEP: Final = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


class Reader:
    """Somebody at a terminal in a checkout, whose home folder has pictures and videos."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        self.checkout.mkdir()
        (self.checkout / ".venv").symlink_to(sys.prefix)
        (self.checkout / "examples").symlink_to(ROOT / "examples")
        self.home = home = folder / "home"
        for kind in KINDS:
            for number in range(30):
                file = home / "Pictures" / kind / f"{number:03}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                draw(kind, number).save(file, quality=95)
        (home / "Videos").mkdir()
        shots = [np.asarray(draw(kind, 500)) for kind in KINDS for _ in range(30)]
        write_video(home / "Videos" / "trip.mp4", shots)
        self.port = find_free_port()
        self.environ = {
            **os.environ,
            "HOME": str(home),
            "IMAGE_SEARCH_PORT": str(self.port),
            "IMAGE_SEARCH_URL": f"http://127.0.0.1:{self.port}",
        }
        for name in ("IMAGE_SEARCH_DATA_DIR", "IMAGE_SEARCH_INPUT_SIZE"):
            del self.environ[name]
        self._service: subprocess.Popen[str] | None = None

    def follow(self, page: str) -> None:
        """Do what the page says."""
        steps = [
            step
            for block in re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
            for step in STEP.findall(block)
        ]
        assert len(steps) >= 4
        for command, shown in steps:
            if command.startswith("export "):
                pairs = (word.split("=", 1) for word in shlex.split(command)[1:])
                self.environ |= {name: value for name, value in pairs if value != "…"}
            elif command.endswith("-m service"):
                self._serve(command)
            else:
                self._run(command, shown)

    def _run(self, command: str, shown: str) -> None:
        done = subprocess.run(
            ["bash", "-c", command.replace("8000", str(self.port))],
            cwd=self.checkout,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout)
        printed = iter(masked(done.stdout.replace(str(self.home), "/home/you")).splitlines())
        for line in masked(shown).splitlines():
            # In this order, and perhaps with others between; "…" is what depends on the images.
            pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
            assert any(map(pattern.fullmatch, printed)) or line == "…", (line, done.stdout)

    def _serve(self, command: str) -> None:
        self.stop()
        self._service = subprocess.Popen(
            ["bash", "-c", f"exec env {command}"],
            cwd=self.checkout,
            env=self.environ,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        wait_until(self._is_ready, 60)

    def _is_ready(self) -> bool:
        assert self._service is not None
        assert self._service.poll() is None
        try:
            return httpx2.get(f"http://127.0.0.1:{self.port}/health").is_success
        except httpx2.TransportError:
            return False

    def stop(self) -> None:
        """Stop the service, as Ctrl-C does."""
        if self._service is not None:
            self._service.send_signal(signal.SIGINT)
            self._service.wait(30)


def masked(text: str) -> str:
    """The text without what differs from run to run: numbers, digests, and how wide columns are."""
    text = re.sub(r"\b(?=[a-z]*\d)[0-9a-f]{16}\b", "#", text)
    return re.sub(r"[ \t]+", " ", re.sub(r"\d[\d,.:]*", "#", text))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.stop()


def page(name: str) -> str:
    return (TUTORIALS / f"{name}.md").read_text()


@pytest.mark.parametrize("name", ["photos", "video"])
def test_the_tutorial_works(reader: Reader, name: str) -> None:
    reader.follow(page(name))


def test_the_tutorial_on_pinecone_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with use_store("pinecone", monkeypatch):
        monkeypatch.delenv("IMAGE_SEARCH_STORE")
        reader = Reader(tmp_path)
        try:
            reader.follow(page("pinecone"))
        finally:
            reader.stop()


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("IMAGE_SEARCH_INPUT_SIZE")
    path = ROOT / "examples" / "search.ipynb"
    notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [], "clear the outputs before the notebook is committed"
            assert cell.execution_count is None
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": path.parent}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds
