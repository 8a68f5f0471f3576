"""Searching for videos and the moments in them, over HTTP, on both stores."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from image_search.index import Record
from image_search.manifest import Manifest
from image_search.moments import frame_id
from image_search.settings import Settings, load_settings
from image_search.stores import create_index
from image_search.values import DIMENSION, Metadata
from image_search_client import Client, command, names, terminal
from service import selection
from service.schemas import BatchResponse, SearchResponse
from tests.support.images import KINDS, draw, encode
from tests.support.indexes import FakeEmbedder, serve_fakes, use_store
from tests.support.servers import ServiceThread, assert_problem, serve, wait_for

RNG = np.random.default_rng(0)
# What all frames of the longest video are near to.
SCENE = RNG.standard_normal(DIMENSION).astype(np.float32)
FRAMES = {"long.mp4": 1_300} | {f"clips/{number}.mp4": 3 * number + 1 for number in range(12)}
IMAGES = [*(f"photo-{number}.jpg" for number in range(9)), "clips/5.mp4"]
PICTURE = encode(draw(KINDS[0], 0))


def records() -> Iterator[Record]:
    for video, count in FRAMES.items():
        scene = 3 * SCENE if video == "long.mp4" else RNG.standard_normal(DIMENSION)
        for number in range(count):
            frame = scene + RNG.standard_normal(DIMENSION)
            metadata: Metadata = {"video": video, "time": float(number), "duration": count}
            id_ = frame_id(video, number)
            yield Record(id_, frame.astype(np.float32), None, metadata, id_.encode())
    for id_ in IMAGES:
        vector = RNG.standard_normal(DIMENSION).astype(np.float32)
        yield Record(id_, vector, None, {"time": 3}, id_.encode())


RECORDS = list(records())
ROWS = np.stack([record.embedding for record in RECORDS]).astype(np.float64)
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)


@pytest.fixture(scope="module", params=["embedded", "pinecone"])
def settings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """Those of a filled index."""
    with pytest.MonkeyPatch.context() as patch, use_store(request.param, patch):
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        serve_fakes(patch)
        settings = load_settings(data_dir=tmp_path_factory.mktemp("moments"), api_keys="secret")
        manifest = Manifest.new(FakeEmbedder().model, "cosine", settings.namespace)
        with create_index(settings, manifest) as index:
            index.upsert(RECORDS)
        yield settings


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[TestClient]:
    with serve(settings) as client:
        wait_for(client, 200)
        yield client


def ask(client: TestClient, embedding: Any, **options: Any) -> dict[str, Any]:
    response = client.post("/query", json={"embedding": embedding.tolist(), **options})
    assert response.status_code == 200, response.text
    SearchResponse.model_validate_json(response.content, strict=True, extra="forbid")
    answer: dict[str, Any] = response.json()
    return answer


def ranked(embedding: Any) -> list[tuple[float, Record]]:
    """All records by their cosine similarity, best first."""
    query = embedding.astype(np.float64)
    scores = ROWS @ query / np.linalg.norm(query)
    return [(float(scores[row]), RECORDS[row]) for row in np.argsort(-scores)]


def groups_of(pairs: list[tuple[float, Record]]) -> list[list[tuple[float, Record]]]:
    groups: dict[Any, list[tuple[float, Record]]] = {}
    for score, record in pairs:
        groups.setdefault(record.metadata.get("video", (record.id,)), []).append((score, record))
    return list(groups.values())


QUERIES = {
    "random": RNG.standard_normal(DIMENSION).astype(np.float32),
    # The thousand best are of one video, and more.
    "scene": SCENE,
    "image": RECORDS[-3].embedding,
}


@pytest.mark.parametrize("top_k", [1, 4, 15, 100])
@pytest.mark.parametrize("query", QUERIES)
def test_the_best_frame_of_each_video_is_found_with_its_next_best(
    client: TestClient, query: str, top_k: int
) -> None:
    embedding = QUERIES[query]
    answer = ask(client, embedding, top_k=top_k, group_by="video")
    pairs = ranked(embedding)
    expected = groups_of(pairs)[:top_k]
    matches = answer["matches"]
    assert [match["id"] for match in matches] == [group[0][1].id for group in expected]
    assert answer["complete"] is True
    looked_at = {record.id for _, record in pairs[: min(3 * top_k, top_k + 100)]}
    for match, ((score, best), *others) in zip(matches, expected, strict=True):
        assert match["score"] == pytest.approx(score, abs=1e-5)
        assert match["video"] == best.metadata.get("video")
        assert match["time"] == (best.metadata["time"] if match["video"] else None)
        assert match["thumbnail"] is not None
        moments = match["moments"]
        assert len(moments) <= 10
        assert [moment["id"] for moment in moments] == [
            record.id for _, record in others[: len(moments)]
        ]
        # None of those that were looked at is missing.
        near = [record.id for _, record in others if record.id in looked_at]
        assert len(moments) >= min(10, len(near))
        for moment, (moment_score, record) in zip(moments, others, strict=False):
            assert moment["time"] == record.metadata["time"]
            assert moment["score"] == pytest.approx(moment_score, abs=1e-5)
            assert moment["confidence"] is None


def test_without_groups_frames_are_matches_of_their_own(client: TestClient) -> None:
    plain = ask(client, SCENE, top_k=20)
    assert plain == {**ask(client, SCENE, top_k=20, group_by="none"), "took_ms": plain["took_ms"]}
    assert [match["id"] for match in plain["matches"]] == [
        record.id for _, record in ranked(SCENE)[:20]
    ]
    assert {match["video"] for match in plain["matches"]} == {"long.mp4"}
    assert all(match["moments"] == [] for match in plain["matches"])
    assert plain["matches"][0]["time"] == ranked(SCENE)[0][1].metadata["time"]


def test_an_answer_says_where_it_gave_up(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "MOST_ROUNDS", 2)
    monkeypatch.setattr(selection, "_MOST", 40)
    answer = ask(client, SCENE, top_k=20, group_by="video", filter={"video": {"$exists": True}})
    assert len(answer["matches"]) < 13
    assert answer["complete"] is False
    assert ask(client, SCENE, top_k=1, group_by="video")["complete"] is True


def test_scores_and_filters_hold_for_videos_and_their_moments(client: TestClient) -> None:
    pairs = ranked(QUERIES["random"])
    bound = pairs[40][0] - 1e-6
    answer = ask(client, QUERIES["random"], top_k=30, group_by="video", min_score=bound)
    found = groups_of(pairs[:41])
    assert [match["id"] for match in answer["matches"]] == [group[0][1].id for group in found]
    assert [len(match["moments"]) for match in answer["matches"]] == [
        min(10, len(group) - 1) for group in found
    ]
    filter_ = {"time": {"$gte": 2, "$lt": 20}, "duration": {"$lte": 25}}
    answer = ask(client, SCENE, top_k=3, group_by="video", filter=filter_)
    passing = [
        (score, record)
        for score, record in ranked(SCENE)
        if 2 <= record.metadata["time"] < 20 and record.metadata.get("duration", 99) <= 25  # type: ignore[operator]
    ]
    assert [match["id"] for match in answer["matches"]] == [
        group[0][1].id for group in groups_of(passing)[:3]
    ]


def test_uploads_are_searched_with_by_video_too(client: TestClient) -> None:
    answer = client.post(
        "/search",
        files={"image": PICTURE},
        params={"group_by": "video", "top_k": 22, "thumbnails": False},
    )
    SearchResponse.model_validate_json(answer.content, strict=True, extra="forbid")
    matches = answer.json()["matches"]
    names = [match["video"] or (match["id"],) for match in matches]
    assert len(names) == len(set(names)) == 22
    assert all(match["thumbnail"] is None for match in matches)
    batch = client.post(
        "/search/batch",
        files=[("images", PICTURE), ("images", b"nothing")],
        params={"group_by": "video", "top_k": 22, "thumbnails": False},
    )
    BatchResponse.model_validate_json(batch.content, strict=True, extra="forbid")
    good, bad = batch.json()["results"]
    assert good["matches"] == matches
    assert (bad["matches"], bad["complete"]) == ([], True)
    for response in (
        client.post("/search", files={"image": PICTURE}, params={"group_by": "label"}),
        client.post("/query", json={"id": IMAGES[0], "group_by": "label"}),
    ):
        assert_problem(response, 422, "invalid_parameters")


def test_the_client_and_its_command_show_moments(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    at_hand = encode(draw(KINDS[0], 1))
    with ServiceThread(settings) as service, Client(service.url) as client:
        service.wait_until_ready()
        [best, *_] = client.query(embedding=SCENE.tolist(), top_k=3, group_by="video")
        pairs = ranked(SCENE)[:9]
        assert (best.video, best.time) == ("long.mp4", pairs[0][1].metadata["time"])
        assert best.times == tuple(record.metadata["time"] for _, record in pairs)
        assert [moment.id for moment in best.moments] == [record.id for _, record in pairs[1:]]
        result = client.search(at_hand, group_by="video", top_k=22)
        assert result.complete
        shown = result._repr_html_()
        times = [match.times for match in result if match.times]
        assert len(times) == len(FRAMES)
        for first, *_ in times:
            assert f"<br>{int(first) // 60}:{int(first) % 60:02d}" in shown

        path = service.url
        arguments = ["query", "-", "--service", path, "--group-by", "video", "--top-k", "22"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(at_hand)))
            assert command.main(arguments) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["#", "score", "confidence", "label", "time", "id"]
    for row, match in zip(rows[1:], result, strict=True):
        assert row.endswith(match.video or match.id)
        clocks = [f"{int(time) // 60}:{int(time) % 60:02d}" for time in match.times]
        assert (", ".join(clocks) or " - ") in row


def test_pictures_on_a_terminal_have_their_times() -> None:
    lines = terminal.strips([PICTURE] * 3, "blocks", 40, ["0:12", ""]).splitlines()
    assert [lines[row].split() for row in (8, 17)] == [["1", "0:12", "2"], ["3"]]
    assert [names.clock(time) for time in (0, 59.9, 61, 3723.5)] == [
        "0:00",
        "0:59",
        "1:01",
        "1:02:03",
    ]
