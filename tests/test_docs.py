"""The README and docs/ against the code: what they name exists, and what exists they name."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest
import yaml
from pydantic_core import PydanticUndefined

from image_search.file_metadata import FIELDS
from image_search.settings import Settings, load_settings, variable
from image_search_client import ImageSearchError
from service import problems
from service.app import create_app
from service.metrics import STAGES, Metrics
from tests.support import ROOT
from tools import cli_reference

README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
PAGES = {path: path.read_text() for path in [ROOT / "README.md", *DOCS.rglob("*.md")]}
EXAMPLES = PAGES[DOCS / "how-to" / "search.md"]


def test_the_settings_table_is_the_settings() -> None:
    page = PAGES[DOCS / "reference" / "settings.md"]
    rows = re.findall(r"^\| `(IMAGE_SEARCH_\w+)` \| `([^`]*)` \| (.*) \|$", page, re.MULTILINE)
    expected = []
    for name, field in Settings.model_fields.items():
        assert field.default is not PydanticUndefined
        expected.append((variable(name), str(field.default), field.description))
    assert rows == expected


def test_the_page_on_metadata_lists_the_fields_of_files() -> None:
    page = PAGES[DOCS / "reference" / "metadata.md"]
    [section] = re.findall(
        r"^## Fields from image files\n(.*?)^## ", page, re.MULTILINE | re.DOTALL
    )
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", section, re.MULTILINE)
    assert rows == [(field.name, field.type, field.meaning) for field in FIELDS]


def test_the_page_on_metadata_lists_the_parameters_of_listings() -> None:
    page = PAGES[DOCS / "reference" / "metadata.md"]
    section = page.partition("## Browsing")[2]
    rows = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    operation = create_app(load_settings()).openapi()["paths"]["/images"]["get"]
    assert named == {parameter["name"] for parameter in operation["parameters"]}


def test_the_example_of_env_is_the_settings() -> None:
    example = (ROOT / ".env.example").read_text()
    rows = re.findall(r"^# (.*)\n# (IMAGE_SEARCH_\w+)=(.*)$", example, re.MULTILINE)
    assert rows == [
        (field.description, variable(name), str(field.default))
        for name, field in Settings.model_fields.items()
    ]


def test_compose_hands_all_settings_on_but_those_of_the_container_itself() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    own = {"data_dir", "host", "port"}
    settings = [variable(name) for name in Settings.model_fields if name not in own]
    for service in ("api", "worker"):
        assert services[service]["environment"] == [*settings, "PINECONE_API_KEY"]


def test_all_name_the_one_version() -> None:
    [stated] = (ROOT / "VERSION").read_text().split()
    for distribution in ("image-search", "image-search-client"):
        assert version(distribution) == stated
    for file in ("docker-compose.yml", "docker-compose.cpu.yml"):
        for service in yaml.safe_load((ROOT / file).read_text())["services"].values():
            assert service["image"].endswith(f":{stated}")
    pages = "\n".join(PAGES.values())
    assert set(re.findall(r"image-search (\d+\.\d+\.\d+)", pages)) == {stated}


def test_every_setting_has_a_default_that_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGE_SEARCH_INPUT_SIZE")
    assert load_settings(data_dir="data") == Settings.model_construct()


def test_the_page_on_errors_lists_every_code_with_its_class() -> None:
    page = PAGES[DOCS / "reference" / "errors.md"]
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| `(\w+)` \| .+ \|$", page, re.MULTILINE)
    expected = [
        (str(status.value), code, type(ImageSearchError.of("", code, status)).__name__)
        for code, (status, _) in problems.CODES.items()
    ]
    assert sorted(rows) == sorted(expected)


def test_the_page_on_metrics_lists_every_metric() -> None:
    page = PAGES[DOCS / "reference" / "metrics.md"]
    rows = re.findall(r"^\| `(image_search_\w+)` \| (\w+) \| .+ \|$", page, re.MULTILINE)
    shown = Metrics().text().decode()
    types = re.findall(r"^# TYPE (image_search_\w+) (\w+)$", shown, re.MULTILINE)
    assert sorted(rows) == sorted(row for row in types if not row[0].endswith("_created"))


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    dashboard = json.loads((DOCS / "reference" / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = set(re.findall(r"\b((?:image_search|process)_\w+)\{", " ".join(queries)))
    shown = Metrics().text().decode()
    families = set(re.findall(r"^# TYPE (\w+) ", shown, re.MULTILINE))
    own = {name for name in families if name.startswith("image_search_")}
    families_named = {re.sub("_(bucket|sum|count)$", "", name) for name in named}
    assert own - {name for name in own if name.endswith("_created")} <= families_named <= families
    # Values of labels that are picked out.
    for label, value in re.findall(r'(stage|familiar)!?="(\w+)"', " ".join(queries)):
        assert value in {"stage": {*STAGES}, "familiar": {"true", "false", "unknown"}}[label]


def test_the_page_on_commands_is_what_the_programs_say() -> None:
    assert cli_reference.TARGET.read_text() == cli_reference.generate()


def test_the_gateway_answers_with_a_code_that_is_known() -> None:
    config = (ROOT / "gateway" / "haproxy.cfg").read_text()
    answers = re.findall(r"^    http-error status (\d+) .* string (\".*\")$", config, re.MULTILINE)
    assert len(answers) >= 3
    for status, text in answers:
        problem = json.loads(json.loads(text))
        assert problems.Problem(**problem).status == int(status)
        assert problem["code"] in problems.CODES


def test_every_route_is_named() -> None:
    paths = create_app(load_settings()).openapi()["paths"]
    assert len(paths) >= 10
    for path in paths:
        assert path in PAGES[DOCS / "reference" / "api.md"]


def outputs_of_programs(page: str, service_url: str) -> list[str]:
    """What each program in a page prints, when it asks this service."""
    outputs = []
    for program in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        run = subprocess.run(
            [sys.executable, "-c", program.replace("http://127.0.0.1:8000", service_url)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (run.returncode, run.stderr) == (0, "")
        outputs.append(run.stdout)
    return outputs


@pytest.mark.slow
def test_the_programs_in_the_docs_run(service_url: str) -> None:
    outputs = [
        output.splitlines()
        for page in (README, EXAMPLES)
        for output in outputs_of_programs(page, service_url)
    ]
    of_short, [*matches, last] = outputs
    assert of_short == matches
    assert {line.split()[1] for line in matches} <= {"flower", "tree"}
    assert len(matches) == 5
    assert re.fullmatch(r"boat \{2: ImageRejectedError\(.*\)\}", last)


@pytest.mark.parametrize("page", [README, EXAMPLES], ids=["README", "examples"])
def test_the_command_in_the_docs_prints_such_a_table(service_url: str, page: str) -> None:
    [(arguments, table)] = re.findall(
        r"^\$ .venv/bin/image-search (.*)\n((?:.+\n)+?)```$", page, re.MULTILINE
    )
    run = subprocess.run(
        [sys.executable, "-m", "image_search_client", *arguments.split()],
        cwd=ROOT,
        env={**os.environ, "IMAGE_SEARCH_URL": service_url},
        capture_output=True,
        text=True,
        check=True,
    )
    shown, expected = run.stdout.splitlines(), table.splitlines()
    assert len(shown) == len(expected)
    assert shown[0].split() == expected[0].split()
    assert [row.split()[0] for row in shown] == [row.split()[0] for row in expected]


@pytest.mark.slow
def test_the_curl_commands_in_the_docs_answer_so(service_url: str) -> None:
    pattern = r"^\$ (curl (?:.+\n)*?.*[^|\\\n])\n((?:[^\n]+\n)+?)```$"
    examples = [
        example
        for path, page in PAGES.items()
        if path.parent.name != "tutorial"  # tests/test_tutorials.py follows those
        for example in re.findall(pattern, page, re.MULTILINE)
    ]
    assert len(examples) >= 6
    for command, expected in examples:
        program = command.replace("http://127.0.0.1:8000", service_url)
        # The index of the tests has the first drawings of each kind, under other ids.
        program = re.sub(r"sample-(\w+)-00(\d)", r"\1/\2", program)
        run = subprocess.run(
            ["bash", "-o", "pipefail", "-c", program],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        if expected.startswith("{"):
            assert shape(json.loads(run.stdout)) == shape(json.loads(expected)), command
        else:
            assert len(run.stdout.splitlines()) == len(expected.splitlines()), command


def shape(answer: Any) -> Any:
    """Names and kinds, but for what depends on the images of the index."""
    if isinstance(answer, dict):
        varying = {"metadata", "confidence", "familiarity", "familiar"}
        return {name: shape(value) for name, value in answer.items() if name not in varying}
    if isinstance(answer, list):
        return [shape(value) for value in answer]
    return answer if isinstance(answer, bool | None) else type(answer)


@pytest.mark.slow
def test_every_file_and_command_that_is_named_exists() -> None:
    for page, text in PAGES.items():
        for path in re.findall(
            r"`((?:image_search|service|worker|tools|benchmarks)/[\w/.]+)`", text
        ):
            assert (ROOT / path).exists(), path
        for path in re.findall(r"\]\(((?!http|#)[^)#]+)[^)]*\)", text):
            assert (page.parent / path).exists(), (page, path)
        for target in set(re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE)):
            subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_lists_are_lists_in_the_built_pages_too() -> None:
    # Python-Markdown needs an empty line before a list, where GitHub does not.
    for page, text in PAGES.items():
        text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        missing = re.findall(r"^(?![- \d]|$).*\n(?:-|1\.) .*", text, re.MULTILINE)
        assert not missing, (page, missing)


def test_the_programs_of_the_tutorial_on_notebooks_run(service_url: str) -> None:
    page = PAGES[DOCS / "tutorial" / "notebook.md"]
    outputs = outputs_of_programs(page, service_url)
    assert len(outputs) == 2
    assert all("flower" in output for output in outputs)


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len(README.splitlines()) <= 150
