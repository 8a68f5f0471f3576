"""Every way of asking and of keeping the index, over HTTP, on both stores."""

import asyncio
import base64
import binascii
import hashlib
import io
import json
import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
import pytest
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from PIL import Image

from image_search.calibration import PAIR_LEVELS, Calibration, PairScores
from image_search.index import Record, VectorIndex
from image_search.settings import load_settings
from image_search.stores import open_index
from image_search.stores.embedded import upkeep
from image_search.values import DIMENSION
from service import follower
from service.schemas import MatchResponse
from tests.support.images import KINDS, PER_KIND, draw, encode
from tests.support.indexes import FakeEmbedder, fill, serve_fakes
from tests.support.pinecone import API_KEY, PineconeEmulator
from tests.support.servers import assert_problem, serve, wait_for
from tests.support.waiting import wait_until

KEY = "secret-1"
HEADERS = {"X-API-Key": KEY}
ID = f"{KINDS[1]}-05"
PICTURE = encode(draw(KINDS[1], 5))
OTHER = encode(draw(KINDS[2], 999))


@pytest.fixture(scope="module", params=["embedded", "pinecone"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """The settings of an index that is filled, and the environment that they need."""
    with pytest.MonkeyPatch.context() as patch, PineconeEmulator() as emulator:
        patch.setenv("PINECONE_API_KEY", API_KEY)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        serve_fakes(patch)
        overrides = {
            "store": request.param,
            "data_dir": tmp_path_factory.mktemp("routes"),
            "pinecone_host": emulator.host,
            "api_keys": f" secret-0 ,{KEY}",
            "max_upload_bytes": 2_000_000,
        }
        fill(load_settings(**overrides), FakeEmbedder()).close()
        yield overrides


@pytest.fixture(scope="module")
def client(store: dict[str, Any]) -> Iterator[TestClient]:
    with serve(load_settings(**store)) as client:
        wait_for(client, 200)
        yield client


@pytest.fixture
def index(store: dict[str, Any]) -> Iterator[VectorIndex]:
    opened = open_index(load_settings(**store))
    yield opened
    opened.close()


def ask(client: TestClient, **body: Any) -> Any:
    return client.post("/query", json=body)


def ids(response: Any) -> list[str]:
    assert response.status_code == 200, response.text
    return [match["id"] for match in response.json()["matches"]]


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def embedding(index: VectorIndex, id_: str) -> Any:
    return index.fetch([id_])[id_].embedding


def nearest(index: VectorIndex, query: Any, count: int) -> list[str]:
    return [match.id for match in index.query(np.asarray(query, np.float32), count)]


# --- ways of asking ------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_picture_is_found_alike_by_every_way_of_asking(
    client: TestClient, index: VectorIndex
) -> None:
    upload = client.post("/search", files={"image": PICTURE})
    expected = ids(upload)
    assert expected[0] == ID
    embedded = client.post("/embeddings", files={"image": PICTURE}).json()
    assert embedded["model"] == upload.json()["model"]
    np.testing.assert_allclose(embedded["embedding"], embedding(index, ID), rtol=1e-5, atol=1e-6)
    assert ids(ask(client, embedding=embedded["embedding"])) == expected
    assert ids(ask(client, image=text(PICTURE))) == expected
    assert ids(ask(client, image="data:image/png;base64," + text(PICTURE))) == expected
    lines = base64.encodebytes(PICTURE).decode()
    assert ids(ask(client, image=lines)) == expected
    assert (
        ids(ask(client, image="data:image/png;base64," + lines.replace("\n", "\r\n  "))) == expected
    )
    assert ids(ask(client, positive=[{"image": text(PICTURE)}])) == expected
    # Named by its id it is left out, and there is one more.
    by_id = ids(ask(client, id=ID))
    assert (len(by_id), by_id[:9]) == (10, expected[1:])
    for match in ask(client, id=ID).json()["matches"]:
        assert match.keys() == MatchResponse.model_fields.keys()
    took = ask(client, id=ID).json()["took_ms"]
    assert (took["decode"], took["embed"]) == (0, 0)
    assert took["total"] > 0


def test_examples_are_combined_as_numpy_does(client: TestClient, index: VectorIndex) -> None:
    names = [f"{KINDS[0]}-01", f"{KINDS[1]}-02", f"{KINDS[2]}-03", f"{KINDS[3]}-04"]
    units = [embedding(index, name) / np.linalg.norm(embedding(index, name)) for name in names]
    expected = np.mean(units[:2], axis=0) - 0.5 * np.mean(units[2:], axis=0)
    wanted = [id_ for id_ in nearest(index, expected, 14) if id_ not in names][:10]
    examples = [{"id": name} for name in names]
    assert ids(ask(client, positive=examples[:2], negative=examples[2:])) == wanted
    assert ids(ask(client, id=names[0], positive=examples[1:2], negative=examples[2:])) == wanted


OPPOSITE = [{"embedding": [1.0] * DIMENSION}, {"embedding": [-1.0] * DIMENSION}]


@pytest.mark.parametrize(
    ("body", "code", "named"),
    [
        ({}, "invalid_parameters", "positive"),
        ({"negative": [{"id": ID}]}, "invalid_parameters", "positive"),
        ({"id": ID, "image": "AAAA"}, "invalid_parameters", "at most one"),
        ({"positive": [{}]}, "invalid_parameters", "exactly one"),
        ({"positive": [{"id": ID, "url": "http://x/"}]}, "invalid_parameters", "exactly one"),
        ({"positive": [{"id": ID}] * 17}, "invalid_parameters", "positive"),
        ({"positive": OPPOSITE}, "invalid_parameters", "cancel"),
        ({"id": ID, "topk": 3}, "invalid_parameters", "topk"),
        ({"id": ID, "top_k": 101}, "invalid_parameters", "top_k"),
        ({"id": "ü"}, "invalid_parameters", "id"),
        ({"embedding": [1.0] * (DIMENSION - 1)}, "invalid_parameters", "embedding"),
        ({"embedding": [0.0] * DIMENSION}, "invalid_parameters", "zero"),
        ({"embedding": [1e-30] * DIMENSION}, "invalid_parameters", "length"),
        ({"embedding": [1e-30] + [0.0] * (DIMENSION - 1)}, "invalid_parameters", "length"),
        ({"embedding": [1e308] * DIMENSION}, "invalid_parameters", "embedding"),
        ({"image": "no base64!"}, "invalid_parameters", "base64"),
        ({"image": "iVBORé"}, "invalid_parameters", "base64"),
        ({"image": "QQ="}, "invalid_parameters", "base64"),
        ({"image": "QQ==QQ=="}, "invalid_parameters", "padding"),
        ({"image": "A" * (1024 * 1024 - 4) + "QQ==" + "AAAA"}, "invalid_parameters", "padding"),
        ({"image": 1}, "invalid_parameters", "base64"),
        ({"image": text(b"no picture")}, "not_an_image", "image"),
        ({"id": ID, "filter": {"label": {"$like": "x"}}}, "invalid_filter", "$like"),
        ({"id": ID, "filter": []}, "invalid_parameters", "filter"),
    ],
)
def test_queries_that_are_wrong_say_why(
    client: TestClient, body: Any, code: str, named: str
) -> None:
    response = ask(client, **body)
    assert_problem(response, 422, code)
    assert named in response.json()["detail"]


def test_an_unknown_id_is_named(client: TestClient) -> None:
    for response in (
        ask(client, id="nobody"),
        ask(client, id=ID, negative=[{"id": "nobody"}]),
        client.get("/images/nobody"),
        client.get("/thumbnails/nobody"),
        client.delete("/images/nobody", headers=HEADERS),
    ):
        assert_problem(response, 404, "image_not_found")
        assert "'nobody'" in response.json()["detail"]


def test_json_is_limited_as_uploads_are(client: TestClient) -> None:
    assert_problem(ask(client, image="A" * 2_000_000), 413, "upload_too_large")
    for content in (b'{"min_score": NaN}', b'{"id": "\\ud800"}', b"[" * 100_000, b"", b"\xff"):
        response = client.post(
            "/query", content=content, headers={"Content-Type": "application/json"}
        )
        assert_problem(response, 422, "invalid_parameters")
    response = client.post("/query", content=b"{}", headers={"Content-Type": "text/plain"})
    assert_problem(response, 415, "unsupported_media_type")


COSTLY: dict[str, dict[str, Any]] = {
    "unknown fields": {f"k{number}": 1 for number in range(101)},
    "unknown fields of an example": {"positive": [{f"k{number}": 1 for number in range(101)}]},
    "examples": {"positive": [1] * 100_000},
    "numbers": {"embedding": ["x"] * 100_000},
    "labels": {"id": ID, "labels": [1] * 100_000},
    "conditions": {"id": ID, "filter": {f"k{number}": 1 for number in range(50_000)}},
    "values": {"id": ID, "filter": {"k": {"$in": [1] * 200_000}}},
    "filters": {"id": ID, "filter": {"$or": [{"k": 1}] * 50_000}},
    "a long name": {"n" * 500_000: 1},
    "a long value": {"id": "i" * 500_000},
    "a long operand": {"id": ID, "filter": {"k": {"$gt": "v" * 500_000}}},
    "a long image": {"image": "!" * 500_000},
}


@pytest.mark.parametrize("kind", COSTLY)
def test_json_that_would_be_costly_to_check_is_refused_in_a_line(
    client: TestClient, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    errors = RequestValidationError.errors

    def counted(self: RequestValidationError) -> Any:
        found.append(len(errors(self)))
        return errors(self)

    monkeypatch.setattr(RequestValidationError, "errors", counted)
    response = ask(client, **COSTLY[kind])
    assert response.status_code == 422
    assert len(response.json()["detail"]) <= 320
    assert sum(found) < 10, "Pydantic made an error of each"


def test_json_has_a_megabyte_besides_its_images(client: TestClient) -> None:
    for text_ in ('{"k":"' + "ü" * 600_000 + '"}', '{"filter":{"k":"' + "a" * 1_100_000 + '"}}'):
        content = text_.encode()
        response = client.post(
            "/query", content=content, headers={"Content-Type": "application/json"}
        )
        assert_problem(response, 413, "upload_too_large")
        assert "in addition to its images" in response.json()["detail"]
    # A large image, and one with broken lines.
    large = PICTURE + bytes(1_200_000)
    assert ask(client, image=base64.encodebytes(large).decode(), top_k=1).status_code == 200
    pair = {"a": {"image": text(large[:700_000])}, "b": {"image": text(large[:700_000])}}
    assert client.post("/compare", json=pair).status_code == 200


def test_json_is_parsed_where_nobody_else_waits(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large image in base64 takes a tenth of a second, and the event loop has others."""
    on_the_loop: list[bool] = []

    def noting(work: Any) -> Any:
        def noted(*arguments: Any, **options: Any) -> Any:
            # Neither Pinecone's adapter, which has a loop of its own, nor its emulator, nor what
            # parses the metadata of matches.
            if not re.search("pinecone|process_request|query", threading.current_thread().name):
                on_the_loop.append(asyncio._get_running_loop() is not None)
            return work(*arguments, **options)

        return noted

    monkeypatch.setattr(orjson, "loads", noting(orjson.loads))
    monkeypatch.setattr(binascii, "a2b_base64", noting(binascii.a2b_base64))
    assert ids(ask(client, image=text(PICTURE)))[0] == ID
    images = {name: {"image": text(PICTURE)} for name in ("a", "b")}
    assert client.post("/compare", json=images).status_code == 200
    assert on_the_loop == [False] * 5


def test_too_many_parameters_and_parts_are_refused(client: TestClient) -> None:
    response = client.get("/images?" + "&".join(f"k{number}=1" for number in range(1001)))
    assert_problem(response, 422, "invalid_parameters")
    response = client.get("/images?" + "&".join(f"k{number}=1" for number in range(900)))
    assert_problem(response, 422, "invalid_parameters")
    assert "and 895 more" in response.json()["detail"]
    files = [("image", PICTURE)] * 65
    assert_problem(client.post("/search", files=files), 400, "bad_request")


def test_several_uploads_are_answered_in_order_and_one_bad_one_fails_alone(
    client: TestClient,
) -> None:
    files = [
        ("images", ("a.png", PICTURE, "image/png")),
        ("images", ("b.txt", b"no picture", "text/plain")),
        ("images", ("c.png", OTHER, "image/png")),
    ]
    answer = client.post("/search/batch", files=files, params={"top_k": 3}).json()
    assert answer.keys() == {"results", "model", "took_ms"}
    first, bad, last = answer["results"]
    assert [each["filename"] for each in answer["results"]] == ["a.png", "b.txt", "c.png"]
    for result, content in ((first, PICTURE), (last, OTHER)):
        alone = client.post("/search", files={"image": content}, params={"top_k": 3}).json()
        assert result["problem"] is None
        assert [m["id"] for m in result["matches"]] == [m["id"] for m in alone["matches"]]
    assert bad["matches"] == []
    assert (bad["problem"]["code"], bad["problem"]["status"]) == ("not_an_image", 422)
    assert answer["took_ms"]["total"] > 0


def test_a_wrong_number_of_uploads_is_refused(client: TestClient) -> None:
    files = [("images", ("a.png", PICTURE, "image/png"))] * 33
    response = client.post("/search/batch", files=files)
    assert_problem(response, 422, "invalid_parameters")
    assert "33" in response.json()["detail"]
    alone = client.post("/search/batch", files={"image": PICTURE})
    assert_problem(alone, 422, "invalid_parameters")
    two = client.post("/search", files=[("image", PICTURE), ("image", PICTURE)])
    assert_problem(two, 422, "invalid_parameters")


# --- options -------------------------------------------------------------------------------------


def test_options_of_one_search_are_not_those_of_another(client: TestClient) -> None:
    """The service remembers what it has validated, right or wrong."""
    for route, field in (("/search", "image"), ("/search/batch", "images")):
        for _ in range(2):
            for query, count in (("top_k=3", 3), ("", 10), ("top_k=5&thumbnails=false", 5)):
                answer = client.post(f"{route}?{query}", files={field: PICTURE}).json()
                matches = (answer["results"][0] if field == "images" else answer)["matches"]
                assert len(matches) == count
                assert all((match["thumbnail"] is None) == (count == 5) for match in matches)
            for query in ("top_k=0", "top=3", "filter=null", "top_k=3&top_k=x"):
                assert client.post(f"{route}?{query}", files={field: PICTURE}).status_code == 422
    many = [
        client.post(f"/search?top_k=1&min_score=-{n}", files={"image": PICTURE}) for n in range(300)
    ]
    assert all(ids(one) == [ID] for one in many)
    assert len(ids(client.post("/search?top_k=3", files={"image": PICTURE}))) == 3


def both(client: TestClient, **options: Any) -> Iterator[Any]:
    """The same search with an upload and in JSON."""
    parameters = dict(options)
    if "labels" in parameters:
        parameters["label"] = parameters.pop("labels")
    if "filter" in parameters:
        parameters["filter"] = json.dumps(parameters["filter"])
    yield client.post("/search", files={"image": PICTURE}, params=parameters)
    yield ask(client, image=text(PICTURE), **options)


def test_label_and_filter_must_both_hold(client: TestClient) -> None:
    for response in both(
        client, labels=list(KINDS[:2]), filter={"n": {"$gte": 3}, "label": {"$ne": KINDS[0]}}
    ):
        assert sorted(ids(response)) == [f"{KINDS[1]}-{n:02d}" for n in range(3, PER_KIND)]
    for response in both(client, filter={}, top_k=2):
        assert len(ids(response)) == 2


def test_a_whole_number_may_have_a_point(client: TestClient) -> None:
    assert len(ask(client, image=text(PICTURE), top_k=2.0).json()["matches"]) == 2
    assert_problem(ask(client, image=text(PICTURE), top_k=2.5), 422, "invalid_parameters")


@pytest.mark.parametrize("source", ["{", "null", "[]", '{"a": NaN}', '{"a": {"$gt": "x"}}', "5"])
def test_a_filter_that_is_none_is_refused(client: TestClient, source: str) -> None:
    response = client.post("/search", files={"image": PICTURE}, params={"filter": source})
    assert_problem(response, 422, "invalid_filter")


def test_scores_and_confidence_can_be_bounded(client: TestClient) -> None:
    scores = [match["score"] for match in ask(client, image=text(PICTURE)).json()["matches"]]
    for response in both(client, min_score=scores[3] - 1e-6):
        assert len(ids(response)) == 4
    for response in both(client, min_confidence=0.5):
        assert ids(response) == []
    for response in both(client, thumbnails=False):
        assert all(match["thumbnail"] is None for match in response.json()["matches"])


@pytest.mark.slow
def test_confidence_follows_the_calibration_of_the_index_without_a_restart(
    store: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(follower._SECONDS_BETWEEN_CHECKS, "pinecone", 0.1)
    settings = load_settings(**store, namespace="calibrated")
    index = fill(settings, FakeEmbedder())
    with serve(settings) as client:
        wait_for(client, 200)
        plain = ask(client, image=text(PICTURE)).json()["matches"]
        assert [match["confidence"] for match in plain] == [None] * 10
        worst, best = plain[-1]["score"], plain[0]["score"]
        for least in (0.2, 0.4):
            calibration = Calibration(scores=(worst, best), confidences=(least, 0.9))
            index.save_calibration(calibration)

            def matches() -> Any:
                return ask(client, image=text(PICTURE)).json()["matches"]

            def is_seen(least: float = least) -> bool:
                return bool(matches()[-1]["confidence"] == pytest.approx(least, abs=1e-3))

            wait_until(is_seen)
            expected = np.interp([match["score"] for match in plain], [worst, best], [least, 0.9])
            found = [match["confidence"] for match in matches()]
            np.testing.assert_allclose(found, expected, atol=1e-3)
        for bound, count in ((0.0, 10), (0.39, 10), (0.6, sum(expected >= 0.6)), (1.0, 0)):
            for response in both(client, min_confidence=bound):
                assert len(ids(response)) == count
    index.close()


@pytest.mark.slow
def test_near_duplicates_are_left_out_and_others_take_their_place(
    client: TestClient, index: VectorIndex
) -> None:
    plain = ids(ask(client, image=text(PICTURE), top_k=20))
    random = np.random.default_rng(0)
    copies = [
        Record(
            f"copy-{id_}-{number:02d}",
            (embedding(index, id_) + random.normal(0, 0.01, DIMENSION)).astype(np.float32),
            None,
            {},
            b"",
        )
        for id_ in plain[1:4]
        for number in range(30)
    ]
    index.upsert(copies)
    try:
        names = {copy.id for copy in copies}
        with_copies = ids(ask(client, image=text(PICTURE), top_k=12))
        assert len(names & set(with_copies)) >= 9
        # The query is in the index itself, and is left out, too.
        for response in both(client, deduplicate=True, top_k=12):
            found = ids(response)
            originals = [id_.rpartition("-")[0] if id_ in names else id_ for id_ in found]
            assert len(set(originals)) == len(found) == 12
            assert [id_.removeprefix("copy-") for id_ in originals] == plain[1:13]
        bounded = ask(client, image=text(PICTURE), deduplicate=True, min_score=0.999, top_k=3)
        assert ids(bounded) == []
    finally:
        index.delete([copy.id for copy in copies])


# --- comparing -----------------------------------------------------------------------------------


def test_two_pictures_are_compared_however_they_are_named(
    client: TestClient, index: VectorIndex
) -> None:
    one, other = embedding(index, ID), embedding(index, f"{KINDS[0]}-00")
    expected = float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    stored = [match.score for match in index.query(one, 200) if match.id == f"{KINDS[0]}-00"]
    assert stored == [pytest.approx(expected, abs=1e-4)]
    picture = encode(draw(KINDS[0], 0))
    examples: list[dict[str, Any]] = [
        {"id": f"{KINDS[0]}-00"},
        {"image": text(picture)},
        {"embedding": other.tolist()},
    ]
    answers = [client.post("/compare", files={"a": PICTURE, "b": picture})]
    answers += [client.post("/compare", json={"a": {"id": ID}, "b": each}) for each in examples]
    answers.append(client.post("/compare", json={"a": examples[1], "b": {"id": ID}}))
    for answer in answers:
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert found["score"] == pytest.approx(expected, abs=1e-4)
        assert found["share_of_same_kind_above"] is None
        assert found["share_of_different_kinds_above"] is None
        assert found["model"] == client.get("/health").json()["model"]
        assert found["took_ms"]["total"] > 0
    same = client.post("/compare", files={"a": PICTURE, "b": PICTURE}).json()
    assert same["score"] == pytest.approx(1)


@pytest.mark.slow
def test_a_comparison_tells_what_its_score_means_in_the_index(store: dict[str, Any]) -> None:
    settings = load_settings(**store, namespace="compared")
    index = fill(settings, FakeEmbedder())
    levels = np.array(PAIR_LEVELS)
    pairs = PairScores(
        same_kind=tuple(0.5 + 0.5 * levels), different_kinds=tuple(0.6 + 0.2 * levels)
    )
    index.save_calibration(Calibration(scores=(0,), confidences=(0,), pairs=pairs))
    index.close()
    with serve(settings) as client:
        wait_for(client, 200)
        answer = client.post("/compare", files={"a": PICTURE, "b": OTHER}).json()
        score = answer["score"]
        assert 0.7 < score < 0.8  # of random vectors of positive numbers
        assert answer["share_of_same_kind_above"] == pytest.approx(2 * (1 - score), abs=1e-6)
        assert answer["share_of_different_kinds_above"] == pytest.approx(
            5 * (0.8 - score), abs=1e-6
        )
        same = client.post("/compare", files={"a": PICTURE, "b": PICTURE}).json()
        assert same["share_of_same_kind_above"] == pytest.approx(0, abs=1e-6)
        assert same["share_of_different_kinds_above"] == 0


@pytest.mark.parametrize(
    ("request_", "status", "code", "detail"),
    [
        ({"files": {"a": PICTURE}}, 422, "invalid_parameters", "no file named b"),
        ({"files": {"a": PICTURE, "b": b""}}, 422, "not_an_image", "b: "),
        ({"files": {"a": b"text", "b": PICTURE}}, 422, "not_an_image", "a: "),
        ({"files": {"a": PICTURE, "b": PICTURE, "c": PICTURE}}, 422, "invalid_parameters", "c"),
        (
            {"files": [("a", PICTURE), ("b", PICTURE), ("b", PICTURE)]},
            422,
            "invalid_parameters",
            "2",
        ),
        (
            {"files": {"a": PICTURE, "b": ("b.txt", b"x", "text/plain")}},
            415,
            "unsupported_media_type",
            "text/plain",
        ),
        ({"data": {"a": "1", "b": "2"}}, 415, "unsupported_media_type", "application/json"),
        ({"json": {"a": {"id": ID}}}, 422, "invalid_parameters", "b: "),
        ({"json": {"a": {"id": ID}, "b": {}}}, 422, "invalid_parameters", "b: "),
        ({"json": {"a": {"id": ID}, "b": {"id": ID}, "c": 1}}, 422, "invalid_parameters", "c: "),
        ({"json": {"a": {"id": ID}, "b": {"id": "x"}}}, 404, "image_not_found", "'x'"),
        ({"json": {"a": {"id": ID}, "b": {"url": "http://a/b"}}}, 403, "urls_disabled", ""),
        (
            {"json": {"a": {"embedding": [0] * DIMENSION}, "b": {"id": ID}}},
            422,
            "invalid_parameters",
            "a: ",
        ),
        (
            {"content": b"{", "headers": {"Content-Type": "application/json"}},
            422,
            "invalid_parameters",
            "not JSON",
        ),
    ],
)
def test_what_cannot_be_compared_is_named(
    client: TestClient, request_: dict[str, Any], status: int, code: str, detail: str
) -> None:
    response = client.post("/compare", **request_)
    assert_problem(response, status, code)
    assert detail in response.json()["detail"]


# --- listing ------------------------------------------------------------------------------------


def test_images_are_listed_without_a_picture_to_search_with(
    client: TestClient, store: dict[str, Any]
) -> None:
    filter_ = json.dumps({"n": {"$gte": 10}})
    parameters: dict[str, Any] = {
        "label": [KINDS[0], KINDS[2]],
        "filter": filter_,
        "thumbnails": "true",
    }
    found: list[Any] = []
    cursor = ""
    while True:
        page = client.get("/images", params={**parameters, "limit": 3, "cursor": cursor}).json()
        found += page["images"]
        cursor = page["cursor"]
        if not cursor:
            break
    assert sorted(image["id"] for image in found) == sorted(
        f"{kind}-{n}" for kind in (KINDS[0], KINDS[2]) for n in (10, 11)
    )
    for image in found:
        assert image == client.get(f"/images/{image['id']}").json()
    [image] = client.get("/images", params={"prefix": f"{KINDS[0]}-10"}).json()["images"]
    assert "thumbnail" not in image
    wanted = [{"words": f"{KINDS[0]} 03"}, {"label": KINDS[0], "sort": "-n"}]
    if store["store"] == "pinecone":
        for each in wanted:
            assert_problem(client.get("/images", params=each), 422, "not_supported")
        return
    [words, newest] = [client.get("/images", params=each).json()["images"] for each in wanted]
    assert [image["id"] for image in words] == [f"{KINDS[0]}-03"]
    assert [image["metadata"]["n"] for image in newest] == list(range(PER_KIND - 1, -1, -1))


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"filter": "no JSON"}, "invalid_filter"),
        ({"filter": "null"}, "invalid_filter"),
        ({"filter": '{"a": {"$near": 1}}'}, "invalid_filter"),
        ({"sort": ""}, "invalid_parameters"),
        ({"words": "x" * 201}, "invalid_parameters"),
        ({"label": ""}, "invalid_parameters"),
        ({"thumbnails": "perhaps"}, "invalid_parameters"),
        ({"order": "id"}, "invalid_parameters"),
    ],
)
def test_wrong_listings_are_refused(
    client: TestClient, parameters: dict[str, str], code: str
) -> None:
    assert_problem(client.get("/images", params=parameters), 422, code)


# --- keeping the index ---------------------------------------------------------------------------


def put(client: TestClient, id_: str, content: bytes = OTHER, **parameters: Any) -> Any:
    return client.put(
        f"/images/{id_}", files={"image": content}, params=parameters, headers=HEADERS
    )


def test_an_image_is_put_looked_at_replaced_found_and_deleted(
    client: TestClient, index: VectorIndex
) -> None:
    new = put(client, "mine/1", label="cat", metadata='{"year": 2026, "tags": ["a"]}')
    assert new.status_code == 201
    sha256 = hashlib.sha256(OTHER).hexdigest()
    given = {"year": 2026, "tags": ["a"], "source": "api", "sha256": sha256}
    with Image.open(io.BytesIO(OTHER)) as picture:
        of_file = {"width": picture.width, "height": picture.height, "format": "png"}
    metadata = {**given, **of_file}
    shown = client.get("/images/mine/1").json()
    assert shown == new.json()
    thumbnail = shown.pop("thumbnail")
    assert shown == {"id": "mine/1", "label": "cat", "metadata": metadata}
    kind, _, data = thumbnail.partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).format == "JPEG"
    assert ids(client.post("/search", files={"image": OTHER}))[0] == "mine/1"
    assert "cat" in [each["label"] for each in client.get("/labels").json()["labels"]]

    replaced = put(client, "mine/1", PICTURE, metadata='{"source": "me", "width": 5}')
    assert replaced.status_code == 200
    assert replaced.json()["metadata"]["source"] == "me"
    assert replaced.json()["metadata"]["width"] == 5
    assert replaced.json()["label"] is None
    np.testing.assert_allclose(
        embedding(index, "mine/1"), embedding(index, ID), rtol=1e-5, atol=1e-6
    )
    deleted = client.delete("/images/mine/1", headers=HEADERS)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert_problem(client.get("/images/mine/1"), 404, "image_not_found")
    assert index.count() == len(KINDS) * PER_KIND


@pytest.mark.slow
@pytest.mark.parametrize("id_", ["a b", "50%", "a/b//c", "q?x#", "'", '"', "&=+;:@", "~" * 512])
def test_ids_of_any_characters_work_in_addresses(
    client: TestClient, index: VectorIndex, id_: str
) -> None:
    path = quote(id_)
    assert put(client, path).json()["id"] == id_
    assert index.fetch([id_]).keys() == {id_}
    assert client.get(f"/thumbnails/{path}").status_code == 200
    assert client.delete(f"/images/{quote(id_, safe='')}", headers=HEADERS).status_code == 204


@pytest.mark.parametrize(
    ("id_", "parameters"),
    [
        ("%C3%BC", {}),
        ("%0A", {}),
        ("x" * 513, {}),
        ("x", {"metadata": "{"}),
        ("x", {"metadata": "[]"}),
        ("x", {"metadata": '{"label": "x"}'}),
        ("x", {"metadata": '{"a": {}}'}),
        ("x", {"metadata": '{"a": NaN}'}),
        ("x", {"label": ""}),
        ("x", {"labels": "cat"}),
    ],
)
def test_records_that_are_not_valid_are_refused(
    client: TestClient, index: VectorIndex, id_: str, parameters: dict[str, Any]
) -> None:
    assert_problem(put(client, id_, **parameters), 422, "invalid_parameters")
    assert index.count() == len(KINDS) * PER_KIND


def test_bad_images_are_not_put(client: TestClient) -> None:
    assert_problem(put(client, "x", b"no picture"), 422, "not_an_image")
    assert_problem(put(client, "x", bytes(3_000_000)), 413, "upload_too_large")


def test_pages_lead_through_the_whole_index(client: TestClient) -> None:
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = client.get("/images", params={"limit": 20, "cursor": cursor}).json()
        found += page["images"]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert [image["id"] for image in found] == sorted(
        f"{kind}-{n:02d}" for kind in KINDS for n in range(PER_KIND)
    )
    assert all(image.keys() == {"id", "label", "metadata"} for image in found)
    assert {image["label"] for image in found} == set(KINDS)
    some = client.get("/images", params={"prefix": f"{KINDS[0]}-"}).json()["images"]
    assert [image["id"] for image in some] == [f"{KINDS[0]}-{n:02d}" for n in range(PER_KIND)]
    for bad in ({"limit": 0}, {"limit": 1001}, {"prefix": "ü"}, {"page": 2}):
        assert_problem(client.get("/images", params=bad), 422, "invalid_parameters")


def test_thumbnails_are_files_that_browsers_cache(client: TestClient, index: VectorIndex) -> None:
    first = client.get(f"/thumbnails/{ID}")
    assert first.content == index.fetch([ID])[ID].thumbnail
    assert first.headers["content-type"] == "image/jpeg"
    assert "max-age" in first.headers["cache-control"]
    etag = first.headers["etag"]
    for known in (etag, f'"x", W/{etag}', "*"):
        again = client.get(f"/thumbnails/{ID}", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
    other = client.get(f"/thumbnails/{ID}", headers={"If-None-Match": '"x"'})
    assert other.status_code == 200
    assert client.get(f"/thumbnails/{KINDS[0]}-01").headers["etag"] != etag
    index.upsert([Record("bare", embedding(index, ID), None, {}, b"")])
    assert_problem(client.get("/thumbnails/bare"), 404, "image_not_found")
    assert client.get("/images/bare").json()["thumbnail"] is None
    index.delete(["bare"])


def test_labels_are_listed(client: TestClient, store: dict[str, Any]) -> None:
    labels = client.get("/labels").json()["labels"]
    count = PER_KIND if store["store"] == "embedded" else None
    assert [each for each in labels if each["label"] in KINDS] == [
        {"label": kind, "count": count} for kind in sorted(KINDS)
    ]


# --- keys ----------------------------------------------------------------------------------------

READING = [
    ("GET", "/images"),
    ("GET", f"/images/{ID}"),
    ("GET", f"/thumbnails/{ID}"),
    ("GET", "/labels"),
    ("POST", "/search"),
    ("POST", "/search/batch"),
    ("POST", "/query"),
    ("POST", "/compare"),
    ("POST", "/embeddings"),
]
WRITING = [("PUT", "/images/x"), ("DELETE", "/images/x")]


@pytest.mark.parametrize(
    "key", [None, "", "secret", "secret-12", "Secret-1", "ü", f" secret-0 ,{KEY}"]
)
def test_writing_needs_a_key(client: TestClient, key: str | None) -> None:
    headers = [] if key is None else [(b"X-API-Key", key.encode("latin-1"))]
    for method, path in WRITING:
        response = client.request(method, path, headers=headers)
        assert_problem(response, 401, "unauthorized")
        assert response.headers["WWW-Authenticate"]


def test_spaces_around_a_key_do_not_matter(client: TestClient) -> None:
    for key in (f"{KEY} ", f" {KEY}\t"):
        response = client.delete("/images/nobody", headers={"X-API-Key": key})
        assert_problem(response, 404, "image_not_found")


def test_no_write_waits_for_upkeep(
    client: TestClient, store: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if store["store"] != "embedded":
        pytest.skip("Pinecone keeps itself up")
    over, begun = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        begun.set()
        over.wait(60)

    monkeypatch.setattr(upkeep, "keep_up", wait)
    url = "/images/written-meanwhile"
    assert client.put(url, files={"image": PICTURE}, headers=HEADERS).status_code == 201
    assert begun.wait(60)
    assert client.put(url, files={"image": OTHER}, headers=HEADERS).status_code == 200
    assert client.delete(url, headers=HEADERS).status_code == 204
    over.set()


@pytest.mark.slow
def test_writing_is_off_without_keys(store: dict[str, Any]) -> None:
    with serve(load_settings(**{**store, "api_keys": ""})) as client:
        for method, path in WRITING:
            assert_problem(client.request(method, path, headers=HEADERS), 403, "writing_disabled")


@pytest.mark.slow
def test_reading_can_need_a_key(store: dict[str, Any]) -> None:
    with serve(load_settings(**store, read_needs_key=True)) as client:
        wait_for(client, 200)
        assert client.get("/metrics").status_code == 200
        assert client.get("/docs").status_code == 200
        for method, path in READING:
            assert_problem(client.request(method, path), 401, "unauthorized")
            assert client.request(method, path, headers=HEADERS).status_code not in {401, 403}
