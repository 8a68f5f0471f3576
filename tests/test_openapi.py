"""The OpenAPI document, and the service held against it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from image_search.settings import load_settings
from service import problems
from service.app import create_app
from tests.support import ROOT
from tests.support.indexes import FakeEmbedder, fill, serve_fakes
from tests.support.openapi import promises
from tests.support.pinecone import API_KEY, PineconeEmulator
from tests.support.servers import ServiceThread, serve, wait_for

KEY = "secret"
METHODS = {
    "search",
    "search_batch",
    "query",
    "compare",
    "embed",
    "list_images",
    "get_image",
    "put_image",
    "delete_image",
    "get_thumbnail",
    "get_original",
    "list_labels",
    "health",
    "metrics",
    "livez",
    "readyz",
}


# Answers have more values now than at the commit; the changelog says so.
WIDENED = {"ModelSpec.recipe", "Problem.code!"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("store", "phases"),
    [("embedded", "examples,coverage,fuzzing"), ("pinecone", "examples,fuzzing,stateful")],
)
def test_schemathesis_finds_no_answer_that_is_not_declared(
    store: str, phases: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_fakes(monkeypatch)
    monkeypatch.setenv("PINECONE_API_KEY", API_KEY)
    with PineconeEmulator() as emulator:
        settings = load_settings(store=store, pinecone_host=emulator.host, api_keys=KEY)
        fill(settings, FakeEmbedder()).close()
        with ServiceThread(settings) as service:
            service.wait_until_ready()
            done = subprocess.run(
                [
                    Path(sys.executable).with_name("schemathesis"),
                    "run",
                    f"{service.url}/openapi.json",
                    f"--header=X-API-Key: {KEY}",
                    f"--phases={phases}",
                    "--max-examples=4",
                    "--seed=1",
                    "--generation-deterministic",
                    "--no-color",
                ],
                cwd=tmp_path,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks",
                },
                capture_output=True,
                text=True,
                check=False,
            )
    shown = "\n".join(line[:500] for line in done.stdout.splitlines())
    assert done.returncode == 0, shown + done.stderr
    assert "16 selected / 16 total" in shown


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(load_settings(api_keys=KEY)).openapi()


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from path.values()


def test_what_clients_of_42e6778_rely_on_is_still_there(document: dict[str, Any]) -> None:
    before = (ROOT / "tests/support/openapi-42e6778.txt").read_text().splitlines()
    now = list(promises(document))
    broken = [line for line in before if line not in now]
    values = dict(line.split(": ") for line in now if line.split(": ")[0] in WIDENED)
    for line in broken:
        field, _, of_before = line.partition(": ")
        assert field in WIDENED, line
        assert set(of_before.split(" | ")) < set(values[field].split(" | "))
    assert len(broken) == len(WIDENED)
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "`recipe` and `code` have values that earlier clients do not know" in changelog

    sent = {line.split(": ")[-1] for line in before if " takes " in line}  # bodies
    operations = {line.partition(" takes ")[0] for line in before}
    for line in set(now) - set(before):
        operation, _, _ = line.partition(" takes ")
        if operation in operations or line.partition(".")[0] in sent:
            assert "!: " not in line, f"{line} is required, and was not before"


def test_operation_ids_are_the_names_of_methods(document: dict[str, Any]) -> None:
    assert {each["operationId"] for each in operations(document)} == METHODS
    for each in operations(document):
        assert each["summary"]
        assert each["description"]
        assert each["tags"]


def test_every_field_and_parameter_has_a_description_and_an_example(
    document: dict[str, Any],
) -> None:
    def example(field: dict[str, Any]) -> bool:
        known = field.get("examples") or "default" in field or "$ref" in str(field)
        return bool(known or field.get("format") == "binary" or "const" in field)

    for name, schema in document["components"]["schemas"].items():
        for field, definition in schema["properties"].items():
            assert definition.get("description"), (name, field)
            variants = [definition, *definition.get("anyOf", [])]
            assert any(map(example, variants)), (name, field, definition)
    for each in operations(document):
        for parameter in each.get("parameters", []):
            assert parameter["description"], parameter
            assert not parameter["required"] or parameter["example"]
            # Swagger UI would ask for a file.
            assert "contentMediaType" not in str(parameter["schema"])
        for content in each.get("requestBody", {}).get("content", {}).values():
            for field in content["schema"].get("properties", {}).values():
                assert field["description"]


def test_what_is_tried_out_is_answered_without_thumbnails(document: dict[str, Any]) -> None:
    named = [
        parameter
        for each in operations(document)
        for parameter in each.get("parameters", [])
        if parameter["name"] == "thumbnails"
    ]
    assert len(named) == 3
    assert all(parameter["example"] is False for parameter in named)
    body = document["paths"]["/query"]["post"]["requestBody"]["content"]["application/json"]
    assert all(each["value"]["thumbnails"] is False for each in body["examples"].values())


def test_every_problem_is_declared_with_an_example(document: dict[str, Any]) -> None:
    declared = set()
    for each in operations(document):
        for status, response in each["responses"].items():
            if int(status) < 400:
                continue
            [(media_type, content)] = response["content"].items()
            assert media_type == "application/problem+json"
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
            for code, shown in content["examples"].items():
                assert shown["value"] == problems.Problem(**shown["value"]).model_dump()
                assert (shown["value"]["code"], str(shown["value"]["status"])) == (code, status)
                declared.add(code)
    # Those have no operation.
    without = {"not_found", "method_not_allowed", "headers_too_large", "unknown_host"}
    assert declared == problems.CODES.keys() - without
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_writing_needs_a_key_and_reading_can(document: dict[str, Any]) -> None:
    def protected(document: dict[str, Any]) -> set[str]:
        return {each["operationId"] for each in operations(document) if "security" in each}

    assert protected(document) == {"put_image", "delete_image"}
    closed = create_app(load_settings(api_keys=KEY, read_needs_key=True)).openapi()
    assert protected(closed) == METHODS - {"health", "metrics", "livez", "readyz"}


@pytest.mark.slow
def test_examples_name_an_image_of_the_index(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_fakes(monkeypatch)
    fill(settings, FakeEmbedder())
    with serve(settings) as client:
        wait_for(client, 200)
        document = client.get("/openapi.json").json()
        [id_] = document["paths"]["/images/{id}"]["get"]["parameters"][0]["schema"]["examples"]
        assert client.get(f"/images/{id_}").status_code == 200
        body = document["paths"]["/query"]["post"]["requestBody"]["content"]["application/json"]
        for example in body["examples"].values():
            response = client.post("/query", json=example["value"])
            assert response.status_code == 200, response.text
