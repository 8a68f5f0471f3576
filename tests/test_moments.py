"""Searching for videos and the moments in them, over HTTP, on both stores."""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from fastapi.testclient import TestClient

from image_search import videos
from image_search.calibration import Calibration
from image_search.embedding import min_side
from image_search.index import Record
from image_search.manifest import Manifest
from image_search.moments import frame_id
from image_search.settings import Settings, load_settings
from image_search.stores import create_index
from image_search.values import DIMENSION, Metadata
from image_search.videos import read_frames
from image_search_client import Client, command, names, terminal
from service import clips, selection
from service.loaded_index import LoadedIndex
from service.schemas import BatchResponse, SearchResponse
from tests.support.images import KINDS, draw, encode
from tests.support.indexes import FakeEmbedder, serve_fakes, use_store
from tests.support.pinecone import API_KEY, PineconeEmulator
from tests.support.servers import ServiceThread, assert_problem, serve, wait_for
from tests.support.videos import scene, write_video

RNG = np.random.default_rng(0)
# What all frames of the longest video are near to.
SCENE = RNG.standard_normal(DIMENSION).astype(np.float32)
FRAMES = {"long.mp4": 1_300} | {f"clips/{number}.mp4": 3 * number + 1 for number in range(12)}
IMAGES = [*(f"photo-{number}.jpg" for number in range(9)), "clips/5.mp4"]
CALIBRATION = Calibration(scores=(-1, 1), confidences=(0, 1))
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
            index.save_calibration(CALIBRATION)
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


@pytest.mark.slow
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
            assert moment["confidence"] == pytest.approx((1 + moment_score) / 2, abs=1e-5)


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


@pytest.mark.slow
def test_videos_cost_as_much_at_pinecone_as_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    with PineconeEmulator() as emulator:
        monkeypatch.setenv("PINECONE_API_KEY", API_KEY)
        settings = load_settings(store="pinecone", pinecone_host=emulator.host)
        embedder = FakeEmbedder()
        manifest = Manifest.new(embedder.model, "cosine", settings.namespace)
        with create_index(settings, manifest) as index:
            index.upsert(RECORDS)
            loaded = LoadedIndex(index, embedder, None)

            def spent(query: str, group_by: selection.GroupBy) -> tuple[int, float]:
                chosen = selection.Selection(10, group_by=group_by)
                emulator.requests.clear()
                matches = index.query(
                    QUERIES[query],
                    chosen.candidates,
                    thumbnails=chosen.with_thumbnails(index),
                )
                found = chosen.choose(loaded, None, QUERIES[query], matches).found
                assert len(found) == 10
                assert all(one.match.thumbnail for one in found)
                requests = emulator.requests
                return len(requests), sum(request.read_units for request in requests)

            plain, grouped = spent("random", "none"), spent("random", "video")
            # All that is looked at first is of one video.
            again = spent("scene", "video")
    print(f"requests and read units: {plain}, by video {grouped}, with a second round {again}")
    assert grouped == plain
    assert again[0] == plain[0] + 1


# --- searching with videos ---------------------------------------------------------------------


def best_of(video: str, count: int = 32) -> Any:
    """The mean direction of a video's frames, evenly spread."""
    rows = [
        row
        for row, record in zip(ROWS, RECORDS, strict=True)
        if record.metadata.get("video") == video
    ]
    steps = np.linspace(0, len(rows) - 1, min(count, len(rows)))
    return np.mean([rows[round(step)] for step in steps], axis=0)


@pytest.mark.parametrize("video", ["long.mp4", "clips/7.mp4", "clips/0.mp4"])
@pytest.mark.parametrize("group_by", ["none", "video"])
def test_a_video_is_searched_with_by_its_id_and_is_not_found(
    client: TestClient, video: str, group_by: str
) -> None:
    response = client.post("/query", json={"id": video, "top_k": 12, "group_by": group_by})
    assert response.status_code == 200, response.text
    others = [
        (score, record)
        for score, record in ranked(best_of(video))
        if record.metadata.get("video") != video
    ]
    matches = response.json()["matches"]
    if group_by == "video":
        expected = [group[0] for group in groups_of(others)][:12]
    else:
        expected = others[:12]
    assert [match["id"] for match in matches] == [record.id for _, record in expected]
    for match, (score, _) in zip(matches, expected, strict=True):
        assert match["score"] == pytest.approx(score, abs=1e-5)
        # That of one frame is that of an image.
        assert (match["confidence"] is None) == (FRAMES[video] > 1)


def test_an_image_comes_before_a_video_of_its_name_and_others_are_not_found(
    client: TestClient,
) -> None:
    [image] = [record for record in RECORDS if record.id == "clips/5.mp4"]
    matches = client.post("/query", json={"id": image.id, "top_k": 5}).json()["matches"]
    expected = [record.id for _, record in ranked(image.embedding) if record.id != image.id]
    assert [match["id"] for match in matches] == expected[:5]
    assert_problem(client.post("/query", json={"id": "clips"}), 404, "image_not_found")
    assert_problem(client.post("/query", json={"id": "clips/5.mp"}), 404, "image_not_found")


def test_the_video_of_a_frame_is_left_out_of_videos(client: TestClient) -> None:
    frame = frame_id("clips/7.mp4", 3)
    plain = client.post("/query", json={"id": frame}).json()["matches"]
    assert plain[0]["video"] == "clips/7.mp4"
    assert frame not in [match["id"] for match in plain]
    videos = client.post("/query", json={"id": frame, "group_by": "video"}).json()["matches"]
    assert len(videos) == 10
    assert "clips/7.mp4" not in [match["video"] for match in videos]


def test_a_score_of_two_videos_is_that_of_their_means(client: TestClient) -> None:
    pair = {"a": {"id": "clips/7.mp4"}, "b": {"id": "clips/9.mp4"}}
    a, b = best_of("clips/7.mp4"), best_of("clips/9.mp4")
    score = client.post("/compare", json=pair).json()["score"]
    assert score == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)


# Decoding has nothing to do with the store.
ONE_STORE = pytest.mark.parametrize("settings", ["embedded"], indirect=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Five seconds, of another picture each."""
    return write_video(tmp_path_factory.mktemp("clips") / "five.mp4").read_bytes()


def embedded(clip: bytes) -> Any:
    """The embeddings of a clip's frames, one a second, at length 1."""
    embedder = FakeEmbedder()
    side = min_side(embedder.model.input_size)
    with read_frames(clip, max_pixels=10_000, min_side=side) as frames:
        rows = embedder.embed([embedder.pixels(frame.image) for frame in frames])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.slow
@ONE_STORE
def test_a_clip_is_searched_with_by_the_mean_of_its_frames(client: TestClient, clip: bytes) -> None:
    rows = embedded(clip)
    assert len(rows) == 5
    expected = [group[0][1].id for group in groups_of(ranked(rows.mean(axis=0)))][:9]
    options: dict[str, Any] = {"top_k": 9, "group_by": "video"}
    answers = [
        client.post("/search", files={"image": ("a.mp4", clip, "video/mp4")}, params=options),
        client.post("/search", files={"image": clip}, params=options),
        client.post("/query", json={"image": base64.b64encode(clip).decode(), **options}),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        SearchResponse.model_validate_json(answer.content, strict=True, extra="forbid")
        found = answer.json()
        assert [match["id"] for match in found["matches"]] == expected
        assert (found["familiarity"], found["familiar"]) == (None, None)
        assert {match["confidence"] for match in found["matches"]} == {None}
    batch = client.post(
        "/search/batch", files=[("images", clip), ("images", PICTURE)], params=options
    )
    [first, second] = batch.json()["results"]
    assert [match["id"] for match in first["matches"]] == expected
    assert [match["id"] for match in second["matches"]] != expected
    vector = client.post("/embeddings", files={"image": clip}).json()["embedding"]
    mean = rows.mean(axis=0)
    np.testing.assert_allclose(
        vector / np.linalg.norm(vector), mean / np.linalg.norm(mean), atol=1e-5
    )


@pytest.mark.slow
@ONE_STORE
def test_a_still_clip_is_as_its_picture(client: TestClient, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "still.mp4", [scene(1)] * 30).read_bytes()
    [row] = embedded(clip)
    found = client.post("/search", files={"image": clip}, params={"top_k": 5}).json()
    assert [match["id"] for match in found["matches"]] == [
        record.id for _, record in ranked(row)[:5]
    ]
    assert all(match["confidence"] > 0.4 for match in found["matches"])


def sound(path: Path) -> bytes:
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.slow
@ONE_STORE
def test_what_is_wrong_with_a_clip_is_told(
    client: TestClient, clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(content: bytes) -> Any:
        return client.post("/search", files={"image": content})

    for content, reason in (
        (clip[:400], "MP4"),
        (sound(tmp_path / "sound.mp4"), "sound"),
    ):
        response = search(content)
        assert_problem(response, 422, "not_an_image")
        assert reason in response.json()["detail"]
    put = client.put("/images/a", files={"image": clip}, headers={"X-API-Key": "secret"})
    assert_problem(put, 422, "not_an_image")
    assert "worker" in put.json()["detail"]
    with monkeypatch.context() as patch:
        patch.setattr(clips, "_LIMITS", replace(clips._LIMITS, memory=1))
        assert_problem(search(clip), 422, "image_too_costly")
    monkeypatch.setattr(videos, "is_available", lambda: False)
    response = search(clip)
    assert_problem(response, 415, "no_video_support")
    assert "image-search[video]" in response.json()["detail"]
    assert search(PICTURE).status_code == 200


# --- the client ----------------------------------------------------------------------------------


@pytest.mark.slow
@ONE_STORE
def test_the_client_and_its_command_show_moments(
    settings: Settings, clip: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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

        arguments = ["query", "-", f"--service={service.url}", "--group-by=video", "--top-k=22"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(at_hand)))
            assert command.main(arguments) == 0
        rows = capsys.readouterr().out.splitlines()
        path = tmp_path / "clip.mp4"
        path.write_bytes(clip)
        assert command.main(["query", str(path), f"--service={service.url}", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["matches"]
        assert [match["id"] for match in found] == [
            record.id for _, record in ranked(embedded(clip).mean(axis=0))[:10]
        ]
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
