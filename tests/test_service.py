"""The HTTP interface, in process: answers, every kind of image, every kind of bad request."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from image_search import __version__
from image_search.embedding import Embedder
from image_search.manifest import Manifest
from image_search.settings import Settings, load_settings
from image_search.stores import create_index, open_index
from service.schemas import SearchResponse
from tests.support import ROOT
from tests.support.images import KINDS, PER_KIND, QUERY, draw, encode
from tests.support.indexes import fill
from tests.support.servers import assert_problem, serve, upload, wait_for
from worker.sources import sample


@pytest.fixture(scope="module")
def module_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings(data_dir=tmp_path_factory.mktemp("service"), max_upload_bytes=2_000_000)


@pytest.fixture(scope="module")
def client(module_settings: Settings, embedder: Embedder) -> Iterator[TestClient]:
    fill(module_settings, embedder)
    with serve(module_settings) as client:
        wait_for(client, 200)
        yield client


@pytest.fixture
def new_client(settings: Settings) -> Iterator[TestClient]:
    with serve(settings) as client:
        yield client


# --- answers -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_search_answers_as_the_index_does(
    client: TestClient, module_settings: Settings, embedder: Embedder
) -> None:
    response = upload(client, encode(QUERY), top_k=7)
    answer = response.json()
    SearchResponse.model_validate_json(response.content, strict=True, extra="forbid")
    assert answer.keys() == {
        "matches",
        "complete",
        "familiarity",
        "familiar",
        "model",
        "took_ms",
    }
    expected = open_index(module_settings).query(embedder.embed([embedder.pixels(QUERY)])[0], 7)
    assert [match["id"] for match in answer["matches"]] == [match.id for match in expected]
    for match, wanted in zip(answer["matches"], expected, strict=True):
        assert match.keys() == {
            "id",
            "label",
            "score",
            "confidence",
            "thumbnail",
            "metadata",
            "video",
            "time",
            "moments",
        }
        assert match["score"] == pytest.approx(wanted.score, abs=1e-5)
        assert (match["label"], match["metadata"]) == (wanted.label, wanted.metadata)
        kind, _, data = match["thumbnail"].partition(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (96, 96)
    assert answer["model"] == embedder.model.model_dump()
    took = answer["took_ms"]
    assert took.keys() == {"decode", "queue", "embed", "search", "total"}
    assert min(took.values()) >= 0
    assert 2 * took["total"] == pytest.approx(sum(took.values()), abs=0.03)


def test_an_indexed_image_finds_itself_first(client: TestClient) -> None:
    [match] = upload(client, encode(draw(KINDS[2], 5)), top_k=1).json()["matches"]
    assert match["id"] == f"{KINDS[2]}-05"
    assert match["score"] == pytest.approx(1, abs=1e-4)


def test_ten_matches_with_thumbnails_are_the_default(client: TestClient) -> None:
    matches = upload(client, encode(QUERY)).json()["matches"]
    assert len(matches) == 10
    assert all(match["thumbnail"] for match in matches)


def test_labels_filter_and_thumbnails_can_be_left_out(client: TestClient) -> None:
    wanted = {KINDS[0], KINDS[3]}
    matches = upload(
        client, encode(QUERY), label=sorted(wanted), top_k=100, thumbnails=False
    ).json()["matches"]
    assert {match["label"] for match in matches} == wanted
    assert len(matches) == 2 * PER_KIND
    assert all(match["thumbnail"] is None for match in matches)
    assert upload(client, encode(QUERY), label="it's nothing").json()["matches"] == []


def test_health_tells_what_answers(client: TestClient, embedder: Embedder) -> None:
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert (health["store"], health["index"]) == ("embedded", "images")
    assert (health["count"], health["version"]) == (len(KINDS) * PER_KIND, __version__)
    assert health["model"] == embedder.model.model_dump()
    assert (health["metric"], health["namespace"]) == ("cosine", "__default__")


def test_swagger_ui_needs_no_other_host(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "http" not in page.replace("http://localhost", "")
    for path in ("swagger-ui-bundle.js", "swagger-ui.css"):
        [url] = [part for part in page.split('"') if part.endswith(path)]
        assert client.get(url).status_code == 200


def test_openapi_declares_the_problems(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    answers = document["paths"]["/search"]["post"]["responses"]
    for status in ("413", "415", "422", "503"):
        [(media_type, content)] = answers[status]["content"].items()
        assert media_type == "application/problem+json"
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
        assert content["examples"]


# --- every kind of image -------------------------------------------------------------------------


def animated(format_: str) -> bytes:
    other = draw(KINDS[0], 0)
    return encode(QUERY, format_, save_all=True, append_images=[other], lossless=True)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    return encode(QUERY.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


def with_alpha() -> bytes:
    image = QUERY.convert("RGBA")
    image.putalpha(255)
    return encode(image)


SAME_PICTURE: dict[str, Callable[[], bytes]] = {
    "png": lambda: encode(QUERY),
    "bmp": lambda: encode(QUERY, "BMP"),
    "tiff": lambda: encode(QUERY, "TIFF"),
    "webp": lambda: encode(QUERY, "WEBP", lossless=True),
    "jpeg": lambda: encode(QUERY, "JPEG", quality=95),
    "cmyk jpeg": lambda: encode(QUERY.convert("CMYK"), "JPEG", quality=95),
    "palette": lambda: encode(QUERY.convert("P", palette=Image.Palette.ADAPTIVE)),
    "gif": lambda: encode(QUERY, "GIF"),
    "alpha": with_alpha,
    "exif orientation": rotated,
    "animated png": lambda: animated("PNG"),
    "animated webp": lambda: animated("WEBP"),
}


@pytest.mark.parametrize("kind", SAME_PICTURE)
def test_one_picture_is_found_alike_in_every_format(client: TestClient, kind: str) -> None:
    def best(content: bytes) -> dict[str, float]:
        matches = upload(client, content, top_k=48).json()["matches"]
        return {match["id"]: match["score"] for match in matches}

    plain, other = best(encode(QUERY)), best(SAME_PICTURE[kind]())
    assert all(abs(plain[id_] - other[id_]) < 0.1 for id_ in plain)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16"])
def test_pictures_without_colour_are_accepted(client: TestClient, mode: str) -> None:
    grey = QUERY.convert("L")
    image = (
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        if mode == "I;16"
        else grey.convert(mode)
    )
    assert len(upload(client, encode(image)).json()["matches"]) == 10


# --- bad requests --------------------------------------------------------------------------------


def bomb() -> bytes:
    """A PNG of 20,000 x 20,000 pixels that is 400 kB small."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(2501 * 20_000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


BAD_UPLOADS = {
    "empty": (b"", "image/png", 422, "not_an_image"),
    "text": (b"no picture", "image/png", 422, "not_an_image"),
    "unknown type": (b"no picture", "application/octet-stream", 422, "not_an_image"),
    "damaged": (encode(QUERY)[:3000], "image/png", 422, "not_an_image"),
    "damaged jpeg": (encode(QUERY, "JPEG")[:900], "image/jpeg", 422, "not_an_image"),
    "bomb": (bomb(), "image/png", 413, "too_many_pixels"),
    "too many bytes": (bytes(3_000_000), "image/png", 413, "upload_too_large"),
    "wrong type": (b"%PDF-1.7", "application/pdf", 415, "unsupported_media_type"),
}


@pytest.mark.parametrize("kind", BAD_UPLOADS)
def test_after_a_bad_upload_the_next_good_one_works(client: TestClient, kind: str) -> None:
    content, media_type, status, code = BAD_UPLOADS[kind]
    assert_problem(upload(client, content, media_type), status, code)
    assert upload(client, encode(QUERY)).status_code == 200


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_k": 0},
        {"top_k": 101},
        {"top_k": "many"},
        {"top_k": 1.5},
        {"thumbnails": "perhaps"},
        {"topk": 5},
    ],
)
def test_bad_parameters_are_named(client: TestClient, parameters: dict[str, Any]) -> None:
    response = upload(client, encode(QUERY), **parameters)
    assert_problem(response, 422, "invalid_parameters")
    assert next(iter(parameters)) in response.json()["detail"]


def test_forms_that_are_wrong_say_what_is_right(client: TestClient) -> None:
    content = encode(QUERY)
    response = client.post("/search", files={"picture": ("q", content, "image/png")})
    assert_problem(response, 422, "invalid_parameters")
    assert "picture" in response.json()["detail"]
    response = client.post("/search", files={"image": ("q", content)}, data={"top_k": "3"})
    assert_problem(response, 422, "invalid_parameters")
    assert "query string" in response.json()["detail"]
    assert_problem(client.post("/search", files={"x": ("", b"")}), 422, "invalid_parameters")


def test_bodies_that_are_no_form_are_refused(client: TestClient) -> None:
    assert_problem(client.post("/search", json={}), 415, "unsupported_media_type")
    assert_problem(client.post("/search", content=encode(QUERY)), 415, "unsupported_media_type")
    broken = client.post(
        "/search", content=b"x", headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert broken.status_code in {400, 422}
    assert broken.headers["content-type"] == "application/problem+json"


def test_unknown_routes_and_methods_are_problems(client: TestClient) -> None:
    assert_problem(client.get("/nothing"), 404, "not_found")
    assert_problem(client.get("/search"), 405, "method_not_allowed")


# --- not ready, and ready by itself ---------------------------------------------------------------


@pytest.mark.slow
def test_the_service_becomes_ready_by_itself(
    new_client: TestClient, settings: Settings, embedder: Embedder
) -> None:
    wait_for(new_client, 503, "no_index")
    response = upload(new_client, encode(QUERY))
    assert_problem(response, 503, "no_index")
    assert response.headers["Retry-After"]
    assert "ingest" in response.json()["detail"]
    fill(settings, embedder)
    assert wait_for(new_client, 200)["count"] == len(KINDS) * PER_KIND
    assert upload(new_client, encode(QUERY)).status_code == 200


@pytest.mark.slow
def test_an_index_of_a_model_that_is_not_at_hand_is_refused(
    new_client: TestClient, settings: Settings, embedder: Embedder
) -> None:
    other = embedder.model.model_copy(update={"fingerprint": "feed"})
    create_index(settings, Manifest.new(other, "cosine", settings.namespace))
    detail = wait_for(new_client, 503, "model_mismatch")["detail"]
    assert "feed" in detail
    assert embedder.model.fingerprint in detail


@pytest.mark.slow
def test_weights_that_cannot_be_had_are_reported(
    new_client: TestClient, settings: Settings, embedder: Embedder
) -> None:
    other = embedder.model.model_copy(update={"weights": "mine.h5"})
    create_index(settings, Manifest.new(other, "cosine", settings.namespace))
    assert "mine.h5" in wait_for(new_client, 503, "model_unavailable")["detail"]


@pytest.mark.long
def test_a_broken_store_is_reported_and_recovers(
    new_client: TestClient,
    settings: Settings,
    embedder: Embedder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fill(settings, embedder)
    wait_for(new_client, 200)
    settings.local_dir.rename(tmp_path / "away")
    wait_for(new_client, 503, "no_index")
    (tmp_path / "away").rename(settings.local_dir)
    wait_for(new_client, 200)
    assert upload(new_client, encode(QUERY)).status_code == 200
    [versions] = settings.local_dir.rglob("_versions")
    for file in versions.iterdir():
        file.write_bytes(b"damaged")
    answer = wait_for(new_client, 503, "store_unavailable")
    assert str(tmp_path) not in json.dumps(answer)
    assert str(tmp_path) in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_health_fails_as_searches_do_when_a_file_of_the_index_is_damaged(
    new_client: TestClient, settings: Settings, embedder: Embedder, damage: str
) -> None:
    fill(settings, embedder)
    wait_for(new_client, 200)
    for file in settings.local_dir.rglob("*.lance"):
        if file.is_file():
            content = file.read_bytes()
            file.unlink()
            if damage == "cut":
                file.write_bytes(content[: len(content) // 2])
    assert_problem(upload(new_client, encode(QUERY)), 503, "store_unavailable")
    wait_for(new_client, 503, "store_unavailable")


def test_every_error_that_reaches_http_has_a_status() -> None:
    from image_search import errors
    from service import errors as service_errors
    from service.problems import _CODE_OF

    # The worker alone raises these, or they are bases.
    elsewhere = {
        errors.ImageSearchError,
        errors.ImageError,
        errors.VectorIndexError,
        errors.SourceError,
        errors.DownloadError,
    }
    known = {
        error
        for module in (errors, service_errors)
        for error in vars(module).values()
        if isinstance(error, type)
    }
    assert known - elsewhere == _CODE_OF.keys()


def test_the_examples_are_held_out_drawings() -> None:
    for kind in sample.KINDS:
        with Image.open(ROOT / "examples" / f"{kind}.png") as image:
            assert image.size == (96, 96)
