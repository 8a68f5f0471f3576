"""Messages name programs as whoever reads them has called them."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_search.program import install, or_make, program
from tests.support import ROOT

FOLDERS = ("image_search", "service", "worker")
NAMES = ("-m worker", "-m service", "image-search-worker", "image-search-service", "pip install")


@pytest.mark.parametrize("called", ["image-search-worker", "image-search-service"])
def test_an_installed_command_names_installed_commands(
    monkeypatch: pytest.MonkeyPatch, called: str
) -> None:
    monkeypatch.setattr(sys, "argv", [f"/home/me/.local/bin/{called}"])
    assert program("worker") == "image-search-worker"
    assert program("service") == "image-search-service"
    assert install("evaluate") == "uv tool install '.[evaluate,service,video]' in a checkout"
    assert install("video") == "uv tool install '.[service,video]' in a checkout"
    assert or_make("make run") == ""


@pytest.mark.parametrize(
    ("executable", "path", "python"),
    [
        ("env/bin/python", "env/bin", "python"),  # an environment that is active
        ("here/.venv/bin/python", "other/bin", ".venv/bin/python"),
        ("elsewhere/bin/python", "other/bin", "python"),
    ],
)
def test_a_module_is_run_by_the_python_that_is_at_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, executable: str, path: str, python: str
) -> None:
    for name in (executable, "other/bin/python"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o755)
    (tmp_path / "here").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "argv", [str(ROOT / "worker" / "__main__.py")])
    monkeypatch.setattr(sys, "executable", str(tmp_path / executable))
    monkeypatch.setenv("PATH", str(tmp_path / path))
    assert program("worker") == f"{python} -m worker"
    assert or_make("make run") == "make run"
    assert install("evaluate") == f"{python} -m pip install 'image-search[evaluate]'"


def test_one_place_decides() -> None:
    found = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for text in texts(ast.parse(path.read_text()))
        if any(name in text for name in NAMES)
    }
    assert found == {
        "image_search/program.py",
        "service/problems.py",  # examples in the OpenAPI document, which is the same everywhere
        # What the reference of the commands calls them.
        "service/__main__.py",
        "worker/__main__.py",
    }


def texts(tree: ast.AST) -> Iterator[str]:
    """The strings of a module that are no docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield str(node.value)
