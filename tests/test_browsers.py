"""Hosts, origins and policies: what web pages of others can do with the service."""

import base64
import hashlib
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from image_search.errors import SettingsError
from image_search.settings import Settings, load_settings
from service.app import create_app
from tests.support.servers import assert_problem, serve, wait_for


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with serve(settings) as client:
        yield client


def ask(client: TestClient, host: str, path: str = "/metrics") -> Any:
    return client.get(path, headers={"Host": host}, follow_redirects=False)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:8000", "a.localhost", "127.0.0.1:8000", "[::1]:8000", "[::1]"),
        *("192.168.1.5:8000", "10.0.0.1", "api:8000", socket.gethostname(), ""),
    ],
)
def test_its_own_names_and_addresses_are_answered_for(client: TestClient, host: str) -> None:
    assert ask(client, host).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("evil.example@localhost", "evil.example/localhost", "localhost evil.example", "a" * 999),
    ],
)
@pytest.mark.parametrize("path", ["/", "/docs", "/metrics", "/images", "/nothing"])
def test_names_of_others_are_refused(client: TestClient, host: str, path: str) -> None:
    response = ask(client, host, path)
    assert_problem(response, 421, "unknown_host")
    assert "IMAGE_SEARCH_TRUSTED_HOSTS" in response.json()["detail"]


def test_the_operator_adds_names() -> None:
    settings = load_settings(
        trusted_hosts=" search.example.org, *.example.com", public_url="https://example.net/find"
    )
    with serve(settings) as client:
        for host in ("search.example.org:80", "a.example.com", "a.b.example.com", "example.net"):
            assert ask(client, host).status_code == 200
        for host in ("example.org", "example.com", "other.example.net"):
            assert_problem(ask(client, host), 421, "unknown_host")
    with serve(load_settings(trusted_hosts="*")) as client:
        assert ask(client, "evil.example").status_code == 200


def test_nobody_is_led_to_the_host_that_a_request_names() -> None:
    with serve(load_settings(trusted_hosts="*")) as client:
        for path in ("/health/", "/images/", "/docs/", "/static-offline-docs"):
            response = ask(client, "evil.example", path)
            assert "location" not in response.headers
            assert "evil.example" not in response.text


def test_every_answer_has_its_headers(client: TestClient) -> None:
    for response in (
        client.get("/metrics"),
        client.get("/health"),
        client.get("/nothing"),
        client.get("/search"),
        client.post("/search"),
        client.get("/"),
        client.get("/docs"),
        client.get("/openapi.json"),
        client.get("/static-offline-docs/swagger-ui.css"),
        ask(client, "evil.example"),
    ):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert response.headers["content-security-policy"].startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert "access-control-allow-origin" not in response.headers


def test_unexpected_errors_have_them_too(settings: Settings) -> None:
    app = create_app(settings)
    app.add_api_route("/boom", lambda: 1 / 0)
    with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
        response = client.get("/boom")
    assert_problem(response, 500, "internal_error")
    assert response.headers["x-content-type-options"] == "nosniff"


def test_the_documentation_runs_its_own_scripts_alone(client: TestClient) -> None:
    response = client.get("/docs")
    policy = response.headers["content-security-policy"]
    [script] = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}';" in policy


def test_a_public_address_with_a_path_is_known_to_the_documentation() -> None:
    with serve(load_settings(public_url="https://example.org/find/")) as client:
        page = client.get("/docs").text
        assert "'/find/openapi.json'" in page
        assert "/find/static-offline-docs/swagger-ui.css" in page
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/find"}]
        assert client.get("/static-offline-docs/swagger-ui.css").status_code == 200
    # A path of the service's own as the prefix.
    with serve(load_settings(public_url="https://example.org/images")) as client:
        wait_for(client, 503, "no_index")
        assert_problem(client.get("/images/x"), 503, "no_index")
    for url in ("example.org", "ftp://example.org", "https://"):
        with pytest.raises(SettingsError, match="PUBLIC_URL"):
            create_app(load_settings(public_url=url))


def test_other_sites_are_allowed_by_their_origin_alone() -> None:
    with serve(load_settings(cors_origins="https://a.example, https://b.example")) as client:

        def allowed(origin: str, **headers: str) -> Any:
            response = client.options("/images/x", headers={"Origin": origin, **headers})
            return response.headers.get("access-control-allow-origin")

        asked = {
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "X-API-Key",
        }
        assert allowed("https://b.example", **asked) == "https://b.example"
        assert allowed("https://c.example", **asked) is None
        response = client.get("/metrics", headers={"Origin": "https://a.example"})
        assert response.headers["access-control-allow-origin"] == "https://a.example"
        assert response.headers["cross-origin-resource-policy"] == "cross-origin"
        assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/search", "POST"),
        ("HEAD", "/search", "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("PATCH", "/images/x", "DELETE, GET, HEAD, PUT"),
        ("DELETE", "/", "GET, HEAD"),
        ("POST", "/docs", "GET, HEAD"),
    ],
)
def test_methods_that_a_path_does_not_have_are_told(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/", "/metrics", "/openapi.json", "/docs"])
def test_head_is_answered_as_get_without_a_body(client: TestClient, path: str) -> None:
    whole, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
