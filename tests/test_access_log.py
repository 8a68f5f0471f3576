"""The access log, ids of requests, and the probes of orchestrators."""

import json
import logging
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from image_search.settings import Settings, load_settings
from service.app import create_app
from tests.support.indexes import FakeEmbedder, fill, serve_fakes
from tests.support.processes import service
from tests.support.servers import assert_problem, serve, wait_for
from tests.support.waiting import wait_until


def entries(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "service.access_log"]


def test_every_request_is_a_line_of_json(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serve(load_settings(access_log="json")) as client:
        metrics = client.get("/metrics", headers={"X-Request-ID": "mine-1"})
        client.head("/metrics")
        client.get("/images/a-name?prefix=b")
        client.get("/nothing/of/the/kind")
        refused = client.get("/metrics", headers={"Host": "evil.example"})
    lines: list[dict[str, Any]] = [json.loads(line) for line in entries(caplog)]
    assert [(each["method"], each["route"], each["status"]) for each in lines] == [
        ("GET", "/metrics", 200),
        ("HEAD", "/metrics", 200),
        ("GET", "/images/{id}", 503),
        ("GET", "other", 404),
        ("GET", "other", 421),
    ]
    assert lines[0]["request_id"] == "mine-1"
    assert lines[0]["bytes"] == len(metrics.content)
    assert lines[1]["bytes"] == 0
    assert lines[-1]["request_id"] == refused.headers["x-request-id"]
    assert "a-name" not in str(lines)
    for each in lines:
        assert each["milliseconds"] >= 0
        age = datetime.now(UTC) - datetime.fromisoformat(each["time"])
        assert timedelta() <= age < timedelta(minutes=5)


def test_it_can_be_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serve(load_settings(access_log="text")) as client:
        response = client.get("/livez")
    [line] = entries(caplog)
    id_ = response.headers["x-request-id"]
    pattern = rf"\S+ GET /livez 200 [\d.]+ ms {len(response.content)} bytes {id_}"
    assert re.fullmatch(pattern, line)


def test_it_is_off_by_default(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serve(settings) as client:
        assert client.get("/livez").headers["x-request-id"]
    assert entries(caplog) == []


def test_unexpected_errors_are_logged_with_the_id_that_is_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    app = create_app(load_settings(access_log="json"))
    app.add_api_route("/boom", lambda: 1 / 0)
    with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
        response = client.get("/boom")
    assert_problem(response, 500, "internal_error")
    [line] = map(json.loads, entries(caplog))
    assert (line["route"], line["status"]) == ("/boom", 500)
    assert line["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "käse".encode(), "\x7f", None])
def test_ids_that_are_not_usable_are_replaced(settings: Settings, given: Any) -> None:
    with serve(settings) as client:
        headers = {} if given is None else {"X-Request-ID": given}
        answered = [client.get("/livez", headers=headers).headers["x-request-id"] for _ in "12"]
    assert len(set(answered)) == 2
    for each in answered:
        assert re.fullmatch("[0-9a-f]{32}", each)


def test_pages_of_other_sites_can_read_the_id() -> None:
    with serve(load_settings(cors_origins="https://a.example")) as client:
        response = client.get("/livez", headers={"Origin": "https://a.example"})
    assert "X-Request-ID" in response.headers["access-control-expose-headers"]


@pytest.mark.slow
def test_the_lines_are_all_that_is_printed(free_port: int) -> None:
    with service(free_port, IMAGE_SEARCH_ACCESS_LOG="json") as running:
        wait_until(lambda: running.health() != 0, 60)
        running.process.terminate()
        out, _ = running.process.communicate(timeout=60)
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["route"] for line in lines} == {"/health"}


def test_a_process_without_an_index_lives_and_is_not_ready(settings: Settings) -> None:
    with serve(settings) as client:
        wait_for(client, 503, "no_index")
        assert client.get("/livez").json() == {"status": "ok"}
        response = client.get("/readyz")
        assert_problem(response, 503, "no_index")
        assert response.headers["retry-after"]


def test_it_is_ready_when_model_and_index_are_loaded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_fakes(monkeypatch)
    fill(settings, FakeEmbedder()).close()
    # Without a key, as whoever operates the service asks.
    closed = settings.model_copy(
        update={"read_needs_key": True, "api_keys": load_settings(api_keys="k").api_keys}
    )
    with serve(closed) as client:
        wait_for(client, 200)
        assert client.get("/images").status_code == 401
        response = client.get("/readyz")
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
