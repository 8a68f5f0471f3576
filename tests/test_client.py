"""The Python client against the running service, and against answers that go wrong."""

import asyncio
import base64
import dataclasses
import importlib.metadata
import inspect
import io
import json
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image
from pydantic import BaseModel

from image_search.duplicates import NEAR_DUPLICATE_COSINE
from image_search.manifest import ModelSpec
from image_search.settings import load_settings
from image_search_client import (
    AccessError,
    AsyncClient,
    Client,
    Comparison,
    EmbedResult,
    Example,
    Health,
    ImageNotFoundError,
    ImageRejectedError,
    ImageSearchError,
    IndexedImage,
    InvalidRequestError,
    Match,
    Model,
    Moment,
    RequestTimeoutError,
    SearchResult,
    SearchResults,
    ServiceError,
    Thumbnail,
    TookMs,
    UnavailableError,
    UnexpectedAnswerError,
    UnreachableError,
    UnreadableImageError,
    errors,
    retries,
)
from service import problems, schemas
from service.app import create_app
from tests.support import ROOT
from tests.support.images import KINDS, QUERY, draw, encode
from tests.support.servers import SERVICE_KEY, listen
from tests.support.waiting import wait_until
from tools import sync_client
from worker.sources import sample

KIND = KINDS[1]


class Blocking:
    """An AsyncClient that is called like a Client, so that one test is for both."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*args, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        async def call(*args: Any, **options: Any) -> Any:
            answer = method(*args, **options)
            if hasattr(answer, "__aiter__"):
                return [item async for item in answer]
            return await answer

        return lambda *args, **options: self._runner.run(call(*args, **options))

    def close(self) -> None:
        self.aclose()
        self._runner.close()


CLIENTS = {"sync": Client, "async": Blocking}


@pytest.fixture(params=CLIENTS)
def kind(request: pytest.FixtureRequest) -> Any:
    return CLIENTS[request.param]


@pytest.fixture
def client(service_url: str, kind: Any) -> Iterator[Client]:
    with closing(kind(service_url, api_key=SERVICE_KEY)) as client:
        yield client


# --- folders -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_is_sent_and_sent_again_only_what_is_new(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "my pets"
    for name, seed in (("cats/a.png", 0), ("cats/b.png", 1), ("dogs/été.webp", 2), ("top.png", 3)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(KIND, 50 + seed).save(path)
    (folder / ".hidden.png").write_bytes(b"hidden")
    (folder / "notes.txt").write_text("no image")
    (folder / "broken.jpg").write_bytes(b"no image, either")
    try:
        done = client.put_folder(folder, concurrency=2)
        assert (done.sent, done.unchanged, done.left_out) == (4, 0, 1)
        [(failed, error)] = done.errors.items()
        assert failed == str(folder / "broken.jpg")
        assert isinstance(error, ImageRejectedError)
        stored = {image.id: image for image in client.iter_images(prefix="my pets/")}
        assert {id_: image.label for id_, image in stored.items()} == {
            "my pets/cats/a.png": "cats",
            "my pets/cats/b.png": "cats",
            "my pets/dogs/%C3%A9t%C3%A9.webp": "dogs",
            "my pets/top.png": None,
        }
        content = (folder / "cats" / "a.png").read_bytes()
        assert stored["my pets/cats/a.png"].metadata["sha256"] == sha256(content).hexdigest()

        draw(KIND, 60).save(folder / "cats" / "b.png")
        draw(KIND, 61).save(folder / "new.png")
        done = client.put_folder(str(folder))
        assert (done.sent, done.unchanged, len(done.errors)) == (2, 3, 1)
        done = client.put_folder(folder, label_from="none")
        assert (done.sent, done.unchanged) == (3, 2)
    finally:
        for image in list(client.iter_images(prefix="my pets/")):
            client.delete_image(image.id)
    with pytest.raises(UnreadableImageError, match="nowhere"):
        client.put_folder(tmp_path / "nowhere")


# --- searching -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_kind_of_image_finds_what_its_file_does(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "query.png"
    path.write_bytes(encode(QUERY))
    expected = client.search(path, top_k=5).matches
    assert [match.label for match in expected].count(KIND) >= 3
    pixels = np.asarray(QUERY)
    with path.open("rb") as file:
        for image in (
            str(path),
            path.read_bytes(),
            bytearray(path.read_bytes()),
            memoryview(path.read_bytes()),
            file,
            io.BytesIO(path.read_bytes()),
            QUERY,
            pixels,
            np.asfortranarray(pixels),
            pixels[:, :, ::-1][:, :, ::-1],
        ):
            assert client.search(image, top_k=5).matches == expected


def test_grey_arrays_and_other_modes_are_the_pictures_that_they_show(client: Client) -> None:
    grey = QUERY.convert("L")
    expected = client.search(encode(grey)).matches
    assert client.search(np.asarray(grey)).matches == expected
    cmyk = QUERY.convert("CMYK")
    assert client.search(cmyk)[0].id == client.search(QUERY)[0].id


def test_a_photograph_of_pillow_is_upright_as_its_file_is(client: Client, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = tmp_path / "turned.png"
    path.write_bytes(encode(QUERY.transpose(Image.Transpose.ROTATE_90), exif=exif))
    with Image.open(path) as image:
        assert client.search(image).matches == client.search(path).matches


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((8, 8, 3)), ValueError, "uint8"),
        (np.zeros((8, 8, 4), np.uint8), ValueError, r"\[8, 8, 4\]"),
        (np.zeros((0, 8), np.uint8), ValueError, "no pixels"),
        (io.StringIO("text"), TypeError, "'rb'"),
        (5, TypeError, "not int"),
        ("https://example.com/cat.jpg", ValueError, r"query\(url=…\)"),
        ("missing.png", UnreadableImageError, "missing.png cannot be read: No such file"),
        ("missing.png", OSError, "missing.png"),
        (b"no image", ImageRejectedError, "not an image"),
    ],
)
def test_what_is_no_image_is_told_apart(
    client: Client, image: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        client.search(image)


def test_options_reach_the_service(client: Client) -> None:
    labels = [sample.KINDS[0], sample.KINDS[1]]
    result = client.search(QUERY, top_k=20, labels=labels, thumbnails=False)
    assert {match.label for match in result} == set(labels)
    assert len(result) == 16
    assert all(match.thumbnail is None for match in result)
    with pytest.raises(InvalidRequestError, match="top_k") as caught:
        client.search(QUERY, top_k=101)
    assert (caught.value.code, caught.value.status) == ("invalid_parameters", 422)
    with pytest.raises(TypeError, match=r"labels=\['cat'\]"):
        client.search(QUERY, labels="cat")


def test_filters_scores_and_duplicates_reach_the_service(client: Client) -> None:
    both: list[SearchResult] = []
    enough = client.search(QUERY, top_k=30)[-1].score
    for ask in (client.search, lambda image, **options: client.query(image=image, **options)):
        result = ask(QUERY, top_k=100, filter={"seed": {"$lt": np.int64(3)}}, thumbnails=False)
        assert {match.metadata["seed"] for match in result} == {0, 1, 2}
        result = ask(QUERY, top_k=100, min_score=enough, deduplicate=True)
        assert 10 < len(result) <= 30
        assert min(match.score for match in result) >= enough
        both.append(result)
        assert all(match.confidence is not None for match in ask(QUERY, min_confidence=0))
        with pytest.raises(InvalidRequestError) as caught:
            ask(QUERY, filter={"seed": {"$near": 3}})
        assert caught.value.code == "invalid_filter"
    assert both[0].matches == both[1].matches


@pytest.mark.slow
def test_near_duplicates_of_the_index_are_grouped(client: Client) -> None:
    """As all pairs of the drawn images are, compared with NumPy."""
    kinds = sample.KINDS[:8]
    pictures = {f"{kind}/{seed}": draw(kind, seed) for kind in kinds for seed in range(8)}
    rows = np.array([client.embed(picture).embedding for picture in pictures.values()])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, 0)
    threshold = float(np.quantile(cosines, 0.99))
    reached = (cosines >= threshold) | np.eye(len(rows), dtype=bool)
    for _ in range(6):  # paths of up to 64 steps
        reached = reached.astype(int) @ reached > 0
    ids = np.array(list(pictures))
    groups = {tuple(sorted(ids[row].tolist())) for row in reached if row.sum() > 1}
    found = client.duplicates(threshold=threshold, progress=False)
    assert [tuple(image.id for image in group) for group in found] == sorted(
        groups, key=lambda group: (-len(group), group[0])
    )
    best = dict(zip(pictures, cosines.max(axis=1), strict=True))
    for image in (image for group in found for image in group):
        assert image.score == pytest.approx(best[image.id], abs=2e-3)
        assert image.label == image.id.split("/")[0]
    of_one = client.duplicates(threshold=threshold, labels=[KIND], progress=False)
    assert {image.label for group in of_one for image in group} <= {KIND}


@pytest.mark.slow
def test_a_copy_is_a_near_duplicate(client: Client) -> None:
    copied = draw(KIND, 3)
    client.put_image("copy", copied.resize((64, 64)), label=KIND)
    try:
        groups = client.duplicates(progress=False)
        assert [{"copy", f"{KIND}/3"} <= {image.id for image in group} for group in groups].count(
            True
        ) == 1
    finally:
        client.delete_image("copy")
    for threshold in (0, 1.1, -0.5):
        with pytest.raises(ValueError, match="threshold is"):
            client.duplicates(threshold=threshold)


def answered(**fields: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps(fields).encode()


def health_of(metric: str, recipe: str) -> tuple[int, dict[str, str], bytes]:
    facts = {"status": "ok", "store": "embedded", "index": "images", "namespace": "__default__"}
    facts |= {"created_at": "2026-11-23T21:33:42Z", "created_by": "image-search 0.1.0"}
    model = {**dataclasses.asdict(result().model), "recipe": recipe}
    return answered(**facts, count=2, metric=metric, model=model, version="0.1.0")


@pytest.mark.parametrize("metric", ["cosine", "dotproduct", "euclidean"])
def test_thresholds_are_cosines_whatever_the_metric_is(
    scripted: Any, kind: Any, metric: str
) -> None:
    """Of two embeddings of length 1, which give Pinecone's score for the metric."""
    a, b = (np.array(pair) / np.linalg.norm(pair) for pair in ([3, 1], [4, 0]))
    score = ((a - b) ** 2).sum() if metric == "euclidean" else a @ b
    parts = dataclasses.asdict(result())
    match = {"id": "b", "label": None, "score": score}
    server = scripted(
        health_of(metric, "components"),
        answered(images=[{"id": "a", "label": None}]),
        answered(matches=[match], model=parts["model"], took_ms=parts["took_ms"]),
    )
    with closing(kind(server.url)) as client:
        [group] = client.duplicates(threshold=0.9, progress=False)
    assert [(image.id, image.score) for image in group] == [
        (id_, pytest.approx(a @ b)) for id_ in "ab"
    ]
    sent = json.loads(server.bodies[2])
    assert sent["min_score"] == pytest.approx(0.2 if metric == "euclidean" else 0.9)


def test_near_duplicates_where_scores_are_no_cosines_are_refused(scripted: Any, kind: Any) -> None:
    server = scripted(health_of("euclidean", "none"))
    with closing(kind(server.url)) as client:
        with pytest.raises(InvalidRequestError, match="python -m worker duplicates"):
            client.duplicates(threshold=0.9)
        with pytest.raises(ValueError, match="give one"):
            client.duplicates()


@pytest.mark.slow
def test_two_images_are_compared_whatever_they_are(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "query.png"
    path.write_bytes(encode(QUERY))
    match = client.search(QUERY, top_k=5)[4]
    for one in (path, QUERY, np.asarray(QUERY), Example(embedding=client.embed(QUERY).embedding)):
        for other in (match, Example(id=match.id), client.get_image(match.id)):
            assert client.compare(one, other).score == pytest.approx(match.score, abs=1e-4)
    comparison = client.compare(QUERY, QUERY)
    assert comparison.score == pytest.approx(1)
    assert comparison.model == client.health().model
    with pytest.raises(ImageRejectedError, match="b: "):
        client.compare(QUERY, b"no image")
    with pytest.raises(ImageNotFoundError):
        client.compare(Example(id="nothing"), QUERY)


def test_queries_by_id_embedding_image_and_examples(client: Client) -> None:
    embedded = client.embed(QUERY)
    assert len(embedded.embedding) == embedded.model.dimension
    expected = client.search(QUERY)
    for embedding in (embedded.embedding, np.array(embedded.embedding, np.float32)):
        found = client.query(embedding=embedding)
        assert [match.id for match in found] == [match.id for match in expected]
    assert [match.id for match in client.query(image=QUERY)] == [match.id for match in expected]

    first = expected[0].id
    similar = client.query(id=first, top_k=100)
    assert len(similar) == 63
    assert first not in {match.id for match in similar}

    away = sample.KINDS[5]
    mixed = client.query(
        image=QUERY,
        positive=[expected[0], client.get_image(expected[1].id), Example(embedding=[0.5] * 512)],
        negative=[Example(id=f"{away}/0"), Example(image=draw(away, 1))],
        top_k=100,
    )
    assert len(mixed) == 64 - 3
    assert [match.label for match in mixed[-8:]].count(away) >= 3

    with pytest.raises(ImageNotFoundError):
        client.query(id="nothing")
    with pytest.raises(ImageRejectedError):
        client.query(image=b"no image")
    with pytest.raises(AccessError) as caught:
        client.query(url="http://127.0.0.1/cat.jpg")
    assert caught.value.code == "urls_disabled"


def test_a_batch_is_one_request_and_bad_images_alone_fail(client: Client) -> None:
    drawn = [draw(kind, 1000) for kind in sample.KINDS[:3]]
    results = client.search_batch([drawn[0], b"no image", *drawn[1:]], top_k=3)
    assert [type(results.errors[position]) for position in results.errors] == [ImageRejectedError]
    assert list(results.errors) == [1]
    for position, image in zip((0, 2, 3), drawn, strict=True):
        assert [m.id for m in results[position]] == [m.id for m in client.search(image, top_k=3)]
    assert [len(result) for result in results[2:]] == [3, 3]
    with pytest.raises(InvalidRequestError, match="32"):
        client.search_batch([drawn[0]] * 33)


# --- the index -----------------------------------------------------------------------------------


@pytest.mark.parametrize("id_", ["a cat", "a/b", "50%25", "a?b#c", "..", "a/../b", "~+&="])
def test_what_is_put_is_there_until_it_is_deleted(client: Client, id_: str) -> None:
    metadata = {"year": 2026, "tags": ["pet"], "tame": True, "weight": 4.5}
    stored = client.put_image(id_, QUERY, label="it's “a cat”", metadata=metadata)
    assert (stored.id, stored.label) == (id_, "it's “a cat”")
    assert stored.metadata.items() >= metadata.items()
    assert client.get_image(id_) == stored
    assert stored.thumbnail is not None
    assert client.thumbnail(id_) == stored.thumbnail
    assert client.labels()["it's “a cat”"] == 1
    assert client.put_image(id_, QUERY).label is None
    client.delete_image(id_)
    for call in (client.get_image, client.thumbnail, client.delete_image):
        with pytest.raises(ImageNotFoundError, match="there is no image"):
            call(id_)


def test_all_images_are_listed_page_by_page(client: Client) -> None:
    ids = [f"{kind}/{seed}" for kind in sample.KINDS[:8] for seed in range(8)]
    listed = list(client.iter_images(page_size=30))
    assert [image.id for image in listed] == sorted(ids)
    assert {image.label for image in listed} == set(sample.KINDS[:8])
    prefix = sample.KINDS[1]
    assert [image.id for image in client.iter_images(prefix=prefix)] == [
        f"{prefix}/{seed}" for seed in range(8)
    ]
    assert client.labels() == dict.fromkeys(sorted(sample.KINDS[:8]), 8)


def test_images_are_listed_by_label_filter_words_and_order(client: Client) -> None:
    kind, other = sample.KINDS[1], sample.KINDS[2]

    def found(**options: Any) -> list[str]:
        return [image.id for image in client.iter_images(page_size=3, **options)]

    assert found(labels=[kind], sort="-seed") == [f"{kind}/{seed}" for seed in range(7, -1, -1)]
    assert found(labels=[kind, other], filter={"seed": {"$lt": 1}}) == sorted(
        [f"{kind}/0", f"{other}/0"]
    )
    assert found(words=f"5 {kind.upper()}") == [f"{kind}/5"]
    assert found(labels=["no such label"]) == []
    [image] = client.iter_images(prefix=f"{kind}/3", thumbnails=True)
    assert image == client.get_image(f"{kind}/3")
    assert next(iter(client.iter_images())).thumbnail is None
    with pytest.raises(InvalidRequestError, match="operator"):
        found(filter={"seed": {"$near": 1}})


def test_writing_needs_the_key(service_url: str, kind: Any) -> None:
    for key in (None, "wrong"):
        with (
            closing(kind(service_url, api_key=key)) as client,
            pytest.raises(AccessError) as caught,
        ):
            client.put_image("a", QUERY)
        assert (caught.value.code, caught.value.status) == ("unauthorized", 401)


# --- results -------------------------------------------------------------------------------------


def test_results_are_sequences_of_matches(client: Client) -> None:
    result = client.search(QUERY)
    assert len(result) == 10
    assert result[0] == result.matches[0] == next(iter(result))
    assert result[1:3] == result.matches[1:3]
    assert result[0].thumbnail is not None
    assert Image.open(io.BytesIO(result[0].thumbnail)).format == "JPEG"
    assert json.loads(json.dumps(result.to_dicts()))[0]["id"] == result[0].id
    assert result.model.dimension == 512
    assert result.took_ms.total > 0


def test_many_images_come_back_in_order_and_bad_ones_alone_fail(
    client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    drawn = [draw(kind, 1000) for kind in sample.KINDS[:8]]
    images: list[Any] = [*drawn, b"no image", "missing.png", *drawn]
    results = client.search_many(iter(images), concurrency=3, top_k=1)
    assert len(results) == len(images)
    assert [result[0].id for result in results[:8]] == [client.search(i)[0].id for i in drawn]
    assert [result[0].id for result in results[10:]] == [result[0].id for result in results[:8]]
    assert {position: type(error) for position, error in results.errors.items()} == {
        8: ImageRejectedError,
        9: UnreadableImageError,
    }
    with pytest.raises(ImageRejectedError):
        results[8]
    with pytest.raises(ImageRejectedError):
        list(results)
    assert capfd.readouterr().err == ""  # no progress bar where nobody looks


def test_a_table_of_results(client: Client) -> None:
    table = client.search(QUERY).to_dataframe()
    assert list(table.columns[:4]) == ["id", "label", "score", "confidence"]
    assert "metadata.seed" in table.columns
    assert len(table) == 10
    table = client.search_many([QUERY, QUERY], top_k=2).to_dataframe()
    assert list(table["query"]) == [0, 0, 1, 1]


def test_a_progress_bar_is_for_those_who_look(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for progress in (True, False):
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        client.search_many([QUERY] * 3, progress=progress)
        assert ("3/3" in terminal.getvalue()) is progress


def test_without_pandas_the_table_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"image-search-client\[dataframe\]"):
        result(match()).to_dataframe()


def test_without_pillow_arrays_say_what_to_install(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"image-search-client\[pictures\]"):
        client.search(np.zeros((8, 8), np.uint8))


def test_health(client: Client) -> None:
    # The count may be a second old: other tests put images.
    wait_until(lambda: client.health().count == 64)
    health = client.health()
    assert (health.status, health.store) == ("ok", "embedded")
    assert health.near_duplicate_cosine == NEAR_DUPLICATE_COSINE["none"]
    assert health.created_at.tzinfo is not None


# --- in Jupyter ----------------------------------------------------------------------------------


def match(**fields: Any) -> Match:
    return Match(**{"id": "a", "label": "cat", "score": 0.5, **fields})


def result(*matches: Match) -> SearchResult:
    return SearchResult(matches, Model("vgg16", "w", "f", 32, 1, "int8", 512), TookMs(*[0.0] * 5))


def test_a_strip_says_that_nothing_like_the_query_is_in_the_index() -> None:
    words = "Nothing like this is in the index."
    for familiar in (True, None, False):
        html = dataclasses.replace(result(match()), familiar=familiar)._repr_html_()
        assert (words in html) == (familiar is False)


def test_the_strip_of_pictures_escapes_what_others_wrote() -> None:
    evil = '"><script>alert(1)</script>'
    html = result(
        match(id=evil, label=evil, confidence=0.87, thumbnail=Thumbnail(evil.encode()))
    )._repr_html_()
    assert "<script" not in html
    assert "87%" in html
    [source] = re.findall(r'src="([^"]*)"', html)
    assert base64.b64decode(source.removeprefix("data:image/jpeg;base64,")) == evil.encode()
    failed = SearchResults((ImageRejectedError(evil, "not_an_image", 422),))
    assert "<script" not in failed._repr_html_()


# --- what goes wrong -----------------------------------------------------------------------------

HANG, DROP = "hang", "drop"
OK: tuple[int, dict[str, str], bytes] = (200, {}, b'{"labels": [{"label": "cat", "count": 2}]}')


def problem(status: int, code: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    body = {"type": "about:blank", "title": "", "status": status, "code": code, "detail": "why"}
    return status, headers, json.dumps(body).encode()


class ScriptedServer:
    """Answers with what the script says, one after another, and the last one for ever."""

    def __init__(self, *script: Any) -> None:
        self.requests: list[str] = []
        self.headers: list[Any] = []
        self.bodies: list[bytes] = []
        self.seconds = 0.0
        self.at_once = self.most_at_once = 0
        lock = threading.Lock()
        released = threading.Event()
        outer = self

        class Scripted(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(f"{self.command} {self.path}")
                outer.headers.append(self.headers)
                outer.bodies.append(self.rfile.read(int(self.headers["Content-Length"] or 0)))
                step = script[min(len(outer.requests), len(script)) - 1]
                with lock:
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                time.sleep(outer.seconds)
                with lock:
                    outer.at_once -= 1
                if step == HANG:
                    released.wait()
                if step in (HANG, DROP):
                    self.close_connection = True
                    return
                status, headers, body = step
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_DELETE = do_PUT = do_GET  # noqa: N815

        self._end = ExitStack()
        self.url = self._end.enter_context(listen(Scripted)).url
        self._end.callback(released.set)

    def close(self) -> None:
        self._end.close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    servers: list[ScriptedServer] = []

    def start(*script: Any) -> ScriptedServer:
        servers.append(ScriptedServer(*script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The delays that were asked for; nobody waits for them."""
    recorded: list[float] = []

    async def sleep(seconds: float) -> None:
        recorded.append(seconds)

    monkeypatch.setattr("image_search_client.threads.sleep", recorded.append)
    monkeypatch.setattr("image_search_client.aio.sleep", sleep)
    return recorded


@pytest.mark.parametrize(
    "failure",
    [DROP, problem(503, "overloaded"), problem(429, "slow_down"), (502, {}, b"<h1>Bad gateway")],
)
def test_what_passes_is_sent_again(
    scripted: Any, kind: Any, delays: list[float], failure: Any
) -> None:
    server = scripted(*[failure] * 7, OK)
    with closing(kind(server.url, retries=7)) as client:
        assert client.labels() == {"cat": 2}
    assert len(server.requests) == 8
    for delay, longest in zip(delays, (0.25, 0.5, 1, 2, 4, 8, 8), strict=True):
        assert longest / 2 <= delay <= longest


def test_a_service_that_says_when_is_asked_then(
    scripted: Any, kind: Any, delays: list[float]
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    server = scripted(
        problem(503, "overloaded", Retry_After="7"), problem(503, "starting", Retry_After=date), OK
    )
    with closing(kind(server.url)) as client:
        client.labels()
    assert 7 <= delays[0] <= 7.3
    assert 10 <= delays[1] <= 20.6


@pytest.mark.parametrize(
    ("failure", "attempts", "error"),
    [
        (problem(503, "overloaded"), 3, UnavailableError),
        (problem(503, "overloaded", Retry_After="3600"), 1, UnavailableError),
        (problem(503, "no_index"), 1, UnavailableError),
        (DROP, 3, UnreachableError),
        (problem(422, "invalid_parameters"), 1, InvalidRequestError),
        (problem(500, "internal_error"), 1, ServiceError),
        (problem(401, "unauthorized"), 1, AccessError),
        (problem(404, "image_not_found"), 1, ImageNotFoundError),
        (problem(422, "url_not_fetched"), 1, ImageRejectedError),
        (problem(422, "of_next_year"), 1, InvalidRequestError),
        (problem(503, "of_next_year"), 3, UnavailableError),
        ((504, {}, b"<h1>Gateway timeout"), 3, UnavailableError),
        ((200, {}, b"<h1>It works"), 1, UnexpectedAnswerError),
        ((200, {}, b'{"labels": [{"count": 2}]}'), 1, UnexpectedAnswerError),
        ((200, {}, b"\xff"), 1, UnexpectedAnswerError),
        ((404, {}, b"<h1>Not found"), 1, UnexpectedAnswerError),
        ((413, {}, b"<h1>Too large"), 1, ImageRejectedError),
        ((307, {"Location": "http://127.0.0.1:9/"}, b""), 1, UnexpectedAnswerError),
    ],
)
def test_failures_are_errors_after_as_many_attempts_as_make_sense(
    scripted: Any, kind: Any, delays: list[float], failure: Any, attempts: int, error: Any
) -> None:
    server = scripted(failure)
    with closing(kind(server.url, retries=2)) as client, pytest.raises(error) as caught:
        client.labels()
    assert type(caught.value) is error
    assert len(server.requests) == attempts
    assert len(delays) == attempts - 1
    if failure != DROP and failure[2].startswith(b'{"type"'):
        expected = json.loads(failure[2])
        assert (caught.value.code, caught.value.status) == (expected["code"], failure[0])
        assert caught.value.detail == "why"


def test_nothing_listens(free_port: int, kind: Any, delays: list[float]) -> None:
    with closing(kind(f"http://127.0.0.1:{free_port}")) as client:
        with pytest.raises(UnreachableError, match=f"{free_port} cannot be reached"):
            client.labels()
        assert len(delays) == 3
        # One that would fail for all is raised, not kept for one image.
        images = iter([b"x"] * 100)
        with pytest.raises(UnreachableError):
            client.search_many(images, concurrency=2)
        assert len(list(images)) >= 96


def test_no_more_requests_are_made_at_once_than_allowed(scripted: Any, kind: Any) -> None:
    server = scripted((200, {}, json.dumps(NO_MATCHES).encode()))
    server.seconds = 0.05
    with closing(kind(server.url)) as client:
        assert len(client.search_many([b"x"] * 12, concurrency=3)) == 12
    assert 2 <= server.most_at_once <= 3


def test_a_service_that_hangs_is_given_up_after_the_timeout(scripted: Any, kind: Any) -> None:
    server = scripted(HANG)
    with closing(kind(server.url, timeout=0.1)) as client, pytest.raises(RequestTimeoutError):
        client.labels()
    assert len(server.requests) == 1


def test_a_deletion_whose_answer_was_lost_has_succeeded(
    scripted: Any, kind: Any, delays: list[float]
) -> None:
    server = scripted(DROP, problem(404, "image_not_found"))
    with closing(kind(server.url)) as client:
        client.delete_image("a/../b c")
        assert server.requests == ["DELETE /images/a%2F..%2Fb%20c"] * 2
        with pytest.raises(ImageNotFoundError):
            client.delete_image("..")
    assert server.requests[-1] == "DELETE /images/%2E%2E"
    assert len(delays) == 1


def test_health_is_asked_once(scripted: Any, kind: Any) -> None:
    server = scripted(problem(503, "starting", Retry_After="5"))
    with closing(kind(server.url)) as client, pytest.raises(UnavailableError, match="why"):
        client.health()
    assert len(server.requests) == 1


def test_the_key_is_sent_and_not_shown(scripted: Any) -> None:
    server = scripted(OK)
    with Client(server.url, api_key="secret") as client:
        client.labels()
        assert "secret" not in repr(client)
    assert server.headers[0]["X-API-Key"] == "secret"


def test_a_password_in_the_address_is_not_shown(free_port: int) -> None:
    with Client(f"http://me:secret@127.0.0.1:{free_port}/images/", retries=0) as client:
        assert repr(client) == f"Client('http://127.0.0.1:{free_port}/images')"
        with pytest.raises(UnreachableError) as caught:
            client.labels()
        assert "secret" not in str(caught.value)


def test_answers_of_a_newer_service_are_understood(scripted: Any) -> None:
    newer = {
        "matches": [
            {"id": "a", "label": None, "score": 1, "thumbnail": None, "metadata": {}, "new": 1}
        ],
        "model": {**MODEL, "new": 1},
        "took_ms": {**TOOK, "new": 1},
        "new": {},
    }
    with Client(scripted((200, {}, json.dumps(newer).encode())).url) as client:
        assert client.search(b"x").matches == (match(label=None, score=1.0),)


MODEL = {
    "architecture": "vgg16",
    "weights": "imagenet",
    "fingerprint": "0" * 16,
    "input_size": 32,
    "preprocessing": 2,
    "precision": "int8",
    "dimension": 512,
}
TOOK = dict.fromkeys(("decode", "queue", "embed", "search", "total"), 0.5)
NO_MATCHES = {"matches": [], "model": MODEL, "took_ms": TOOK}


@pytest.mark.parametrize("thumbnail", ["javascript:alert(1)", "data:image/jpeg;base64,AA<b>A", 5])
def test_thumbnails_that_are_none_are_refused(scripted: Any, thumbnail: Any) -> None:
    answer = {
        "matches": [{"id": "a", "label": None, "score": 1, "thumbnail": thumbnail, "metadata": {}}],
        "model": MODEL,
        "took_ms": TOOK,
    }
    with (
        Client(scripted((200, {}, json.dumps(answer).encode())).url) as client,
        pytest.raises(UnexpectedAnswerError, match="thumbnail"),
    ):
        client.search(b"x")


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(ImageRejectedError("no image", "not_an_image", 422)))
    assert isinstance(error, ImageSearchError)
    assert (str(error), error.status) == ("no image [not_an_image]", 422)


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "ftp://x"])
def test_addresses_that_are_none_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="http://"):
        Client(address)


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"negative": [Example(id="a")]},
        {"id": "a", "url": "http://x"},
        {"positive": ["cat.jpg"]},
    ],
)
def test_queries_that_say_nothing_or_too_much_are_refused(query: dict[str, Any]) -> None:
    with Client() as client, pytest.raises((ValueError, TypeError)):
        client.query(**query)


# --- the package ---------------------------------------------------------------------------------


def test_the_synchronous_client_is_made_from_the_asynchronous_one() -> None:
    assert sync_client.TARGET.read_text() == sync_client.generate()


def test_the_methods_take_what_the_operations_of_the_service_do() -> None:
    operations = {
        operation["operationId"]: operation
        for path in create_app(load_settings()).openapi()["paths"].values()
        for operation in path.values()
    }
    other_names = {"list_images": "iter_images", "get_thumbnail": "thumbnail"}
    other_names["get_original"] = "original"
    other_names["list_labels"] = "labels"
    for operation in operations.keys() - {"livez", "metrics", "readyz"}:
        assert hasattr(Client, other_names.get(operation, operation))
    options = {parameter["name"] for parameter in operations["search"]["parameters"]}
    options = options - {"label"} | {"labels"}
    query = set(schemas.Query.model_fields)
    for method, expected in (
        (Client.search, options | {"image"}),
        (Client.search_batch, options | {"images"}),
        (Client.search_many, options | {"images", "concurrency", "progress"}),
        (Client.query, query),
    ):
        parameters = inspect.signature(method).parameters
        assert set(parameters) - {"self"} == expected
        for name in options:
            assert parameters[name].default in (schemas.Query.model_fields[name].default, ())


@pytest.mark.parametrize(
    ("result", "answer"),
    [
        (Match, schemas.MatchResponse),
        (Moment, schemas.MomentResponse),
        (Model, ModelSpec),
        (TookMs, schemas.TookMs),
        (SearchResult, schemas.SearchResponse),
        (EmbedResult, schemas.EmbeddingResponse),
        (Comparison, schemas.ComparisonResponse),
        (IndexedImage, schemas.ImageResponse),
        (Health, schemas.HealthResponse),
    ],
)
def test_results_hold_what_the_service_answers(result: Any, answer: type[BaseModel]) -> None:
    assert {field.name for field in dataclasses.fields(result)} <= answer.model_fields.keys()


def test_every_code_of_the_service_has_its_class() -> None:
    known = {
        code: type(ImageSearchError.of("why", code, status))
        for code, (status, _) in problems.CODES.items()
    }
    assert {code for code, kind in known.items() if kind is ServiceError} == {"internal_error"}
    assert errors._BY_CODE.keys() | retries._LASTING <= known.keys()
    assert known["overloaded"] is UnavailableError


@pytest.mark.slow
def test_searching_loads_nothing_heavy(service_url: str, tmp_path: Path) -> None:
    path = tmp_path / "query.png"
    path.write_bytes(encode(QUERY))
    program = (
        "import sys; from image_search_client import Client\n"
        f"assert len(Client({service_url!r}).search({str(path)!r})) == 10\n"
        "heavy = {'tensorflow', 'numpy', 'PIL', 'pandas', 'image_search', 'service', 'worker'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_the_installation_is_small() -> None:
    """What pip puts on the disk for the package and all it needs is less than 15 MB."""
    names, sizes = ["image-search-client"], dict[str, int]()
    while names:
        distribution = importlib.metadata.distribution(names.pop())
        if distribution.name in sizes:
            continue
        sizes[distribution.name] = sum(
            Path(str(file.locate())).stat().st_size
            for file in distribution.files or []
            if Path(str(file.locate())).exists()
        )
        for line in distribution.requires or []:
            needed = Requirement(line)
            if not needed.marker or needed.marker.evaluate({"extra": ""}):
                names.append(needed.name)
    package = ROOT / "client" / "image_search_client"  # installed as a link to it
    total = sum(sizes.values()) + sum(path.stat().st_size for path in package.glob("*.py"))
    assert total < 15_000_000, sizes
    assert "numpy" not in sizes


PROGRAM = """\
import io
from pathlib import Path
from typing import assert_type

import numpy as np
from PIL import Image

from image_search_client import (
    AsyncClient, Client, EmbedResult, Example, ImageSearchError, IndexedImage, Match,
    SearchResult, SearchResults, Thumbnail,
)


def search(client: Client) -> None:
    result = client.search("cat.jpg", top_k=5, labels=["cat"], filter={"year": {"$gte": 2020}})
    assert_type(result, SearchResult)
    assert_type(result[0], Match)
    assert_type(result[:2], tuple[Match, ...])
    assert_type(result[0].confidence, float | None)
    assert_type(result[0].thumbnail, Thumbnail | None)
    assert_type(client.search_many([b"", "cat.jpg"]), SearchResults)
    assert_type(client.query(positive=[result[0], Example(image=b"")]), SearchResult)
    assert_type(client.embed(b""), EmbedResult)
    assert_type(client.labels(), dict[str, int | None])
    for image in client.iter_images():
        assert_type(image, IndexedImage)
    client.search(np.zeros((8, 8, 3), np.uint8))
    client.search(Image.new("RGB", (8, 8)))
    client.search_many([Path("cat.jpg"), io.BytesIO(b"")])
    with open("cat.jpg", "rb") as file:
        client.put_image("a/b", file, label="cat", metadata={"year": 2026, "tags": ["pet"]})
    client.query(embedding=np.zeros(512, np.float32))


async def asearch(client: AsyncClient) -> None:
    result = await client.search("cat.jpg", top_k=5, labels=["cat"])
    assert_type(result, SearchResult)
    assert_type(await client.search_many([b"", "cat.jpg"]), SearchResults)
    assert_type(await client.thumbnail("a"), Thumbnail)
    async for image in client.iter_images(prefix="a"):
        assert_type(image, IndexedImage)
    try:
        await client.delete_image("a")
    except ImageSearchError as exc:
        assert_type(exc.code, str)
        assert_type(exc.status, int | None)


client = Client()
client.search(5)  # type: ignore[arg-type]
client.search("cat.jpg", topk=5)  # type: ignore[call-arg]
client.query("id")  # type: ignore[call-arg]
"""


@pytest.mark.long
def test_a_program_that_uses_the_client_passes_strict_types(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_service_does_not_mind_the_variables_of_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IMAGE_SEARCH_URL", "http://127.0.0.1:8000")
    monkeypatch.setenv("IMAGE_SEARCH_API_KEY", "secret")
    load_settings()


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_socks_proxy_is_told(
    client: type[Client | AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(ValueError, match="SOCKS"):
        client("http://example.invalid")


def test_this_machine_is_asked_without_a_proxy(
    service_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY")
    with Client(service_url) as client:
        assert client.health().count > 0
