"""Familiarity: a sample of all that was ingested, and what is unlike all of it."""

import base64
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from image_search.embedding import Embedder
from image_search.familiarity import UNFAMILIAR_BELOW, Familiarity
from image_search.manifest import Manifest
from image_search.sample import TEXTURES, ImageSample
from image_search.settings import load_settings
from image_search.stores import create_index
from image_search_client.results import BatchAnswer, decode
from tests.support.images import KINDS, draw, encode
from tests.support.servers import serve, upload, wait_for
from worker.confidence import recalibrate
from worker.ingest import ingest
from worker.sources import open_source

IDS = [f"image {number}" for number in range(9000)]


def textures(count: int, seed: int) -> Any:
    """Positive, and of few directions, as those of pictures are."""
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(0).standard_normal((30, TEXTURES))
    return np.exp(rng.standard_normal((count, 30)) @ basis / 5).astype(np.float32)


def sample_of(rows: Any, ids: Sequence[str] = IDS) -> ImageSample:
    return ImageSample().joined(ids[: len(rows)], rows)


# --- the sample -----------------------------------------------------------------------------------


def test_a_small_sample_holds_everything() -> None:
    rows = textures(500, 1)
    sample = sample_of(rows)
    assert set(sample.ids) == set(IDS[:500])
    for id_, row in zip(sample.ids, sample.textures, strict=True):
        np.testing.assert_array_equal(row, rows[IDS.index(id_)])


@pytest.mark.slow
def test_a_sample_is_the_same_however_images_came() -> None:
    rows = textures(9000, 1)
    at_once = sample_of(rows)
    assert len(at_once.ids) == 2000
    order = np.random.default_rng(3).permutation(9000)
    batches = [order[start : start + 700] for start in range(0, 9000, 700)]
    one_by_one = ImageSample()
    halves = [ImageSample(), ImageSample()]
    for number, batch in enumerate(batches):
        ids = [IDS[place] for place in batch]
        one_by_one = one_by_one.joined(ids, rows[batch])
        halves[number % 2] = halves[number % 2].joined(ids, rows[batch])
    first, second = halves
    joined = first.joined(second.ids, second.textures, second.bound)
    for sample in (one_by_one, joined):
        assert sample.fingerprint == at_once.fingerprint
    # A fifth of them from each fifth, but for chance.
    shares = np.histogram([IDS.index(id_) for id_ in at_once.ids], bins=5, range=(0, 9000))[0]
    assert shares.min() > 330
    assert shares.max() < 470


def test_a_newer_image_takes_the_place_of_the_older() -> None:
    rows = textures(50, 1)
    sample = sample_of(rows).joined([IDS[7]], rows[:1])
    assert len(sample.ids) == 50
    np.testing.assert_array_equal(sample.textures[sample.ids.index(IDS[7])], rows[0])


def test_a_sample_stands_for_an_index_that_it_was_drawn_from() -> None:
    sample = sample_of(textures(9000, 1))
    everything = set(sample.ids)
    assert sample.of_index(everything, 9000).is_representative
    # Deleted images leave it, and it stands for the rest.
    half = set(sorted(everything)[:1000])
    assert sample.of_index(half, 4500).is_representative
    # Images that it has not seen: those of an older version, or written over HTTP.
    assert not sample.of_index(everything, 15_000).is_representative
    assert not sample_of(textures(99, 1)).of_index(set(IDS), 99).is_representative
    assert sample_of(textures(100, 1)).of_index(set(IDS), 100).is_representative


def test_a_sample_survives_as_bytes() -> None:
    sample = sample_of(textures(300, 1)).of_index(set(IDS), 300)
    again = ImageSample.from_bytes(sample.to_bytes())
    assert again.fingerprint == sample.fingerprint
    assert again.indexed == 300
    with pytest.raises(ValueError, match="not a sample"):
        ImageSample.from_bytes(b"nothing")


# --- familiarity ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 1000, 2000])
def test_p_values_of_held_out_images_are_uniform(size: int) -> None:
    p_values = Familiarity(sample_of(textures(size, 1))).p_values(textures(3000, 2))
    assert p_values.min() > 0
    assert p_values.max() <= 1
    # Three standard errors of a quantile of half of the sample.
    tolerance = 3 * 0.5 / np.sqrt(size / 2)
    for level in (0.1, 0.5, 0.9):
        assert (p_values <= level).mean() == pytest.approx(level, abs=tolerance)


def test_what_is_unlike_all_images_is_unfamiliar() -> None:
    rows = textures(1000, 1)
    familiarity = Familiarity(sample_of(rows))
    shuffled = np.random.default_rng(4).permuted(rows[:100], axis=1)
    unlike = [np.zeros((1, TEXTURES), np.float32), shuffled, 10 * rows[:100], rows[:100] / 10]
    assert (familiarity.p_values(np.concatenate(unlike)) < UNFAMILIAR_BELOW).all()
    assert (familiarity.p_values(rows) >= UNFAMILIAR_BELOW).mean() > 0.95


def test_a_small_group_of_other_images_is_familiar() -> None:
    few = np.random.default_rng(4).permuted(textures(1, 5), axis=1)
    noise = np.random.default_rng(6).normal(0, 0.02, (20, TEXTURES))
    group = (few * np.exp(noise)).astype(np.float32)
    rows = np.concatenate([textures(1500, 1), group[:10]])
    with_group = Familiarity(sample_of(rows)).p_values(group[10:])
    without = Familiarity(sample_of(rows[:1500])).p_values(group[10:])
    assert (without < UNFAMILIAR_BELOW).all()
    assert (with_group >= UNFAMILIAR_BELOW).all()


def test_images_that_are_all_the_same_are_no_trouble() -> None:
    rows = np.repeat(textures(1, 1), 200, axis=0)
    familiarity = Familiarity(sample_of(rows))
    assert familiarity.p_values(rows[:1])[0] == 1
    assert familiarity.p_values(2 * rows[:1])[0] < UNFAMILIAR_BELOW


# --- what the service says ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Iterator[TestClient]:
    """Of an index of 300 drawings, as the worker leaves it."""
    settings = load_settings(data_dir=tmp_path_factory.mktemp("familiarity"))
    source = open_source("sample", split="train", data_dir=settings.local_dir).limited(300)
    manifest = Manifest.new(embedder.model, settings.metric, settings.namespace)
    with create_index(settings, manifest) as index:
        summary = ingest(source, index, embedder, settings)
        recalibrate(index, summary.sample, threading.Event())
    with serve(settings) as client:
        wait_for(client, 200)
        yield client


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def confidences(answer: Any) -> list[float | None]:
    return [match["confidence"] for match in answer["matches"]]


@pytest.mark.slow
def test_a_picture_like_those_of_the_index_is_familiar(client: TestClient) -> None:
    answers = [upload(client, encode(draw(kind, 900))).json() for kind in KINDS]
    assert sum(answer["familiar"] for answer in answers) >= len(KINDS) - 1
    for answer in answers:
        assert 0 < answer["familiarity"] <= 1
        assert (None in confidences(answer)) == (not answer["familiar"])


@pytest.mark.parametrize("picture", [noise(), Image.new("RGB", (90, 60))], ids=["noise", "black"])
def test_a_picture_unlike_all_has_matches_without_confidence(
    client: TestClient, picture: Image.Image
) -> None:
    answer = upload(client, encode(picture)).json()
    assert answer["familiarity"] < UNFAMILIAR_BELOW
    assert answer["familiar"] is False
    assert confidences(answer) == [None] * 10
    assert upload(client, encode(picture), min_confidence=0).json()["matches"] == []
    base64_image = base64.b64encode(encode(picture)).decode()
    assert client.post("/query", json={"image": base64_image}).json()["familiar"] is False
    embedded = client.post("/embeddings", files={"image": encode(picture)}).json()
    assert embedded["familiarity"] == pytest.approx(answer["familiarity"])
    assert embedded["familiar"] is False


def test_each_image_of_a_batch_is_told_apart(client: TestClient) -> None:
    pictures = [encode(draw(KINDS[0], 901)), encode(noise()), b"no picture"]
    files = [("images", (f"{number}", each)) for number, each in enumerate(pictures)]
    response = client.post("/search/batch", files=files)
    results = response.json()["results"]
    assert [result["familiar"] for result in results] == [True, False, None]
    assert results[2]["familiarity"] is None
    outcomes = decode(response.content, BatchAnswer).results_or_errors()
    assert [outcomes[number].familiar for number in (0, 1)] == [True, False]
    assert outcomes[1].familiarity == results[1]["familiarity"]


def test_only_of_a_single_picture_it_can_be_told(client: TestClient) -> None:
    [match] = upload(client, encode(draw(KINDS[0], 900)), top_k=1).json()["matches"]
    image = base64.b64encode(encode(noise())).decode()
    for query in ({"id": match["id"]}, {"positive": [{"id": match["id"]}, {"image": image}]}):
        answer = client.post("/query", json=query).json()
        assert (answer["familiarity"], answer["familiar"]) == (None, None)
        assert None not in confidences(answer)


def test_matches_filtered_by_label_have_no_confidence(client: TestClient) -> None:
    picture = encode(draw(KINDS[0], 901))
    for options in (
        {"label": KINDS[0]},
        {"filter": json.dumps({"$or": [{"label": {"$ne": "x"}}, {"source": "sample"}]})},
    ):
        answer = upload(client, picture, **options).json()
        assert answer["familiar"] is True
        assert confidences(answer) == [None] * 10
    other = {"filter": json.dumps({"source": "sample", "label": {"$exists": True}})}
    assert None not in confidences(upload(client, picture, **other).json())
