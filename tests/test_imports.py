"""The import rules hold, and each of them is seen to fail when it is broken."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RULES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
# For each rule an import that breaks it, and the module that it is added to.
BREAKAGES = {
    "core": ("image_search/progress.py", "import starlette"),
    "sides": ("worker/ingest.py", "import service"),
    "client": ("client/image_search_client/version.py", "import image_search.errors"),
    "values": ("image_search/values.py", "from image_search import manifest"),
    "layers": ("image_search/filters.py", "from image_search import settings"),
    "index-is-light": ("image_search/manifest.py", "import httpx2"),
    "decoding-is-light": ("image_search/decoding/plain.py", "import openvino"),
    "lancedb": ("image_search/stores/__init__.py", "import lancedb"),
    "arrow": ("worker/ingest.py", "import pyarrow"),
    "obstore": ("worker/ingest.py", "import obstore"),
    "faiss": ("worker/duplicates.py", "import faiss"),
    "pinecone": ("image_search/stores/embedded/index.py", "import pinecone"),
    "pyav": ("image_search/videos.py", "import av"),
    "openvino": ("image_search/embedding.py", "import openvino"),
    "tensorflow": ("image_search/embedding.py", "import tensorflow"),
    "evaluate": ("worker/confidence.py", "import sklearn"),
    "opentelemetry": ("service/pipeline.py", "import opentelemetry"),
    "hdf5": ("worker/ingest.py", "import h5py"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    for package in ("image_search", "service", "worker", "client/image_search_client"):
        for path in (ROOT / package).rglob("*.py"):
            copy = tree / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def lint(tree: Path, *rules: str) -> tuple[int, str]:
    # Both folders come before what is installed, as the repository itself may be.
    code = f"import sys; sys.path[:0] = [{str(tree)!r}, {str(tree / 'client')!r}]; " + (
        "from importlinter.cli import lint_imports_command; lint_imports_command()"
    )
    options = [option for rule in rules for option in ("--contract", rule)]
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache", *options],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_every_rule_is_broken_once_here() -> None:
    assert {rule["id"] for rule in RULES} == BREAKAGES.keys()


def test_the_rules_hold(tree: Path) -> None:
    code, output = lint(tree)
    assert code == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("rule", BREAKAGES)
def test_a_broken_rule_is_told(tree: Path, rule: str) -> None:
    path, line = BREAKAGES[rule]
    module = tree / path
    source = module.read_text()
    module.write_text(f"{source}\n{line}\n")
    try:
        code, output = lint(tree, rule)
    finally:
        module.write_text(source)
    assert code == 1
    assert "BROKEN" in output
    assert line.split()[-1] in output
