"""Traces, as a collector receives them."""

import builtins
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from image_search.settings import Settings
from tests.support.images import png
from tests.support.indexes import FakeEmbedder, fill, serve_fakes
from tests.support.servers import listen, serve, upload, wait_for


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What a collector on this machine has received."""
    received: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {each.key: each.value.string_value for each in resource.resource.attributes}
                assert names["service.name"] == "image-search"
                received.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with listen(Collector) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        yield received


def test_the_stages_of_a_search_are_spans_of_its_request(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, spans: list[Any]
) -> None:
    serve_fakes(monkeypatch)
    fill(settings, FakeEmbedder()).close()
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with serve(settings) as client:
        wait_for(client, 200)
        client.headers["traceparent"] = f"00-{trace}-{parent}-01"
        assert upload(client, png(1)).status_code == 200
    # All are sent before the service ends.
    own = [span for span in spans if span.trace_id.hex() == trace]
    [request] = [span for span in own if span.name == "POST /search"]
    assert request.parent_span_id.hex() == parent
    attributes = {each.key: each.value for each in request.attributes}
    assert attributes["http.route"].string_value == "/search"
    assert attributes["http.response.status_code"].int_value == 200
    stages = [span for span in own if span is not request]
    assert {span.name for span in stages} == {"decode", "embed", "search", "answer"}
    for span in stages:
        assert span.parent_span_id == request.span_id
        begin, end = request.start_time_unix_nano, request.end_time_unix_nano
        assert begin <= span.start_time_unix_nano <= span.end_time_unix_nano <= end
    # Requests before it have traces of their own.
    assert "GET /health" in {span.name for span in spans if span not in own}


def test_failures_are_marked(settings: Settings, spans: list[Any]) -> None:
    with serve(settings) as client:
        wait_for(client, 503, "no_index")
        client.get("/livez")
    failed = {span.name: span.status.code == 2 for span in spans}
    assert failed["GET /health"]
    assert not failed["GET /livez"]


def test_without_a_collector_nothing_is_loaded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    without_opentelemetry(monkeypatch)
    with serve(settings) as client:
        assert client.get("/livez").status_code == 200


def test_without_the_extra_the_service_works_and_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    without_opentelemetry(monkeypatch)
    with serve(settings) as client:
        assert client.get("/livez").status_code == 200
    assert "extra 'otel'" in caplog.text


def without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def imported(name: str, *args: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return usual(name, *args)

    monkeypatch.setattr(builtins, "__import__", imported)
