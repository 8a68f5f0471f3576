"""The README against the code: what it names exists, and what exists it names."""

import re
import subprocess

import yaml
from fastapi.routing import APIRoute
from pydantic_core import PydanticUndefined

from image_search.settings import Settings, load_settings, variable
from service import problems
from service.app import create_app
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_settings_table_is_the_settings() -> None:
    rows = re.findall(r"^\| `(IMAGE_SEARCH_\w+)` \| `([^`]*)` \| (.*) \|$", README, re.MULTILINE)
    expected = []
    for name, field in Settings.model_fields.items():
        assert field.default is not PydanticUndefined
        expected.append((variable(name), str(field.default), field.description))
    assert rows == expected


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


def test_every_setting_has_a_default_that_is_valid() -> None:
    assert load_settings(data_dir="data") == Settings.model_construct()


def test_every_code_of_a_problem_is_named() -> None:
    for code in problems.CODES:
        assert f"`{code}`" in README


def test_every_route_is_named() -> None:
    app = create_app(load_settings())
    for path in app.openapi()["paths"]:
        assert path in README
    assert any(isinstance(route, APIRoute) for route in app.routes)


def test_every_file_and_command_that_is_named_exists() -> None:
    for path in re.findall(r"`((?:image_search|service|worker|tools|benchmarks)/[\w/.]+)`", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / path).exists(), path
    for target in set(re.findall(r"make ([\w-]+)", README)):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)
