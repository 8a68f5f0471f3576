"""Evaluation: chance for noise, one for duplicates, and scikit-learn's figures for the rest."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, roc_auc_score

import worker
from image_search.calibration import Calibration
from image_search.embedding import min_side
from image_search.errors import ImageError, IndexNotFoundError, SourceError
from image_search.index import Match, VectorIndex
from image_search.manifest import Manifest
from image_search.moments import item_of
from image_search.settings import Settings, load_settings
from image_search.stores import create_index, open_index
from image_search.values import Embeddings, Metric, Pixels
from image_search.videos import Sampling, read_frames
from tests.support.images import draw, folder_of
from tests.support.indexes import FakeEmbedder, source_of, use_store
from tests.support.processes import run
from tests.support.videos import scene, write_video
from worker import __main__ as command_line
from worker import report
from worker.evaluate import CHANGES, evaluate
from worker.figures import Evaluation, Figures
from worker.ingest import ingest
from worker.sources import Item, Source, open_source, sample
from worker.sources.source import Video

IndexOf = Callable[..., VectorIndex]

LABELS = ("bird", "cat", "dog")
HOSTILE = "</th><script src=http://evil.example/x.js></script>'\"&{{ 7*7 }}"


@pytest.fixture(params=["embedded", "pinecone"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with use_store(request.param, monkeypatch) as name:
        yield name


def noise(seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8)


def images(name: str, pictures: Sequence[Pixels], label_of: Callable[[int], str | None]) -> Source:
    def items() -> Iterator[Item]:
        for number, pixels in enumerate(pictures):
            yield Item(f"{name}-{number:04d}", label_of(number), pixels, {})

    return source_of(items, len(pictures))


def noise_images(name: str, count: int, first: int = 0) -> Source:
    pictures = [noise(first + number) for number in range(count)]
    return images(name, pictures, lambda number: LABELS[number % 3])


@pytest.fixture
def index_of() -> Iterator[IndexOf]:
    """Makes the index of a source, and closes it in the end."""
    opened: list[VectorIndex] = []

    def make(source: Source, metric: Metric = "cosine") -> VectorIndex:
        settings = load_settings(metric=metric)
        embedder = FakeEmbedder()
        index = create_index(settings, Manifest.new(embedder.model, metric, "__default__"))
        opened.append(index)
        ingest(source, index, embedder, settings)
        index.flush()
        return index

    yield make
    for index in opened:
        index.close()


def evaluation_of(
    source: Source, index: VectorIndex, *, queries: int = 1000, seed: int = 0
) -> Evaluation:
    return evaluate(
        source,
        index,
        FakeEmbedder(),
        load_settings(),
        queries=queries,
        seed=seed,
        scratch=Path(gettempdir()),
    )


def means(figures: Figures) -> dict[str, float]:
    assert figures.retrieval is not None
    estimates = figures.retrieval.overall.estimates
    return {name: estimate.mean for name, estimate in estimates.items()}


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_noise_is_found_at_chance_level(index_of: IndexOf) -> None:
    index = index_of(noise_images("indexed", 240))
    figures = evaluation_of(noise_images("asked", 150, first=1000), index).figures
    retrieval = figures.retrieval
    assert retrieval is not None
    assert retrieval.chance == pytest.approx(1 / 3)
    for name in ("precision@1", "precision@10", "precision@100"):
        estimate = retrieval.overall.estimates[name]
        error = max(estimate.mean - estimate.low, estimate.high - estimate.mean)
        assert abs(estimate.mean - 1 / 3) < 2 * error
    assert retrieval.pairs.roc_auc == pytest.approx(0.5, abs=0.01)
    assert means(figures)["mAP"] == pytest.approx(1 / 3, abs=0.02)


def test_duplicates_are_found_perfectly(index_of: IndexOf) -> None:
    pictures = [noise(number % 3) for number in range(36)]
    index = index_of(images("indexed", pictures, lambda number: LABELS[number % 3]))
    figures = evaluation_of(noise_images("asked", 3), index).figures
    for name in ("precision@1", "precision@5", "precision@10", "mAP"):
        assert means(figures)[name] == 1
    assert figures.retrieval is not None
    assert figures.retrieval.pairs.roc_auc == 1
    assert figures.retrieval.confusion == {label: {label: 10} for label in LABELS}
    assert "precision@100" not in means(figures)  # of 36 images


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dotproduct"])
def test_figures_are_scikit_learns(index_of: IndexOf, store: str, metric: Metric) -> None:  # noqa: ARG001
    index = index_of(noise_images("indexed", 120), metric)
    asked = noise_images("asked", 20, first=1000)
    figures = evaluation_of(asked, index).figures
    retrieval = figures.retrieval
    assert retrieval is not None

    records = index.fetch(index.list_ids(limit=1000).ids)
    rows = np.array([record.embedding for record in records.values()], np.float64)
    labels = np.array([record.label for record in records.values()])
    average_precisions, precisions, pair_scores, pair_same = [], [], [], []
    confusion: dict[str, dict[str, int]] = {}
    for item in asked.items():
        query = FakeEmbedder().embed([np.asarray(item.content)])[0].astype(np.float64)
        scores = {
            "cosine": rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query),
            "dotproduct": rows @ query,
            "euclidean": -((rows - query) ** 2).sum(axis=1),
        }[metric]
        same = labels == item.label
        average_precisions.append(average_precision_score(same, scores))
        nearest = labels[np.argsort(-scores)[:10]]
        precisions.append((nearest == item.label).mean())
        for label in nearest:
            found = confusion.setdefault(str(item.label), {})
            found[label] = found.get(label, 0) + 1
        pair_scores.append(scores)
        pair_same.append(same)
    assert means(figures)["mAP"] == pytest.approx(np.mean(average_precisions), abs=1e-4)
    assert means(figures)["precision@10"] == pytest.approx(np.mean(precisions))
    assert retrieval.confusion == confusion
    scores, same = np.concatenate(pair_scores), np.concatenate(pair_same)
    pairs = retrieval.pairs
    assert (pairs.same, pairs.different) == (same.sum(), (~same).sum())
    assert pairs.roc_auc == pytest.approx(roc_auc_score(same, scores), abs=1e-3)
    sign = -1 if metric == "euclidean" else 1
    assert pairs.same_mean == pytest.approx(sign * scores[same].mean(), rel=1e-3)
    assert sum(pairs.same_shares) == pytest.approx(1, abs=1e-4)
    assert figures.store_recall.mean == 1
    assert sum(one.matches for one in retrieval.precision_by_score) == 20 * 10
    by_label = {label: group.queries for label, group in retrieval.by_label.items()}
    assert by_label == {"bird": 7, "cat": 7, "dog": 6}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures(index_of: IndexOf) -> None:
    index = index_of(noise_images("indexed", 90))
    asked = noise_images("asked", 60, first=1000)
    first, again, other = (evaluation_of(asked, index, queries=30, seed=seed) for seed in (1, 1, 2))
    assert first.figures == again.figures
    assert first.embedding_map is not None
    assert again.embedding_map is not None
    np.testing.assert_array_equal(first.embedding_map.points, again.embedding_map.points)
    assert first.figures.retrieval != other.figures.retrieval
    assert first.figures.protocol.queries == 30


def test_an_image_that_the_index_has_under_a_former_id_does_not_find_itself(
    index_of: IndexOf,
) -> None:
    source = noise_images("indexed", 40)
    index = index_of(source)

    def items() -> Iterator[Item]:
        for item in source.items():
            yield replace(item, id=f"new/{item.id}", former_id=item.id)

    evaluation = evaluation_of(replace(source, items=items), index)
    assert evaluation.figures.protocol.left_out == 40


def test_an_image_that_is_in_the_index_does_not_find_itself(index_of: IndexOf) -> None:
    source = noise_images("indexed", 40)
    index = index_of(source)
    evaluation = evaluation_of(source, index)
    assert evaluation.figures.protocol.left_out == 40
    for strip in evaluation.strips["Drawn at random"]:
        assert len(strip.matches) == 10
        assert strip.query.id not in [picture.id for picture, _ in strip.matches]
    retrieval = evaluation.figures.retrieval
    assert retrieval is not None
    # 12 or 13 of the 39 others have the query's label.
    assert retrieval.chance == pytest.approx(12.35 / 39, abs=1e-4)
    assert retrieval.pairs.same + retrieval.pairs.different == 40 * 39

    rows = np.array([record.embedding for record in index.fetch(index.list_ids().ids).values()])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = np.arange(40) % 3
    expected = [
        average_precision_score(
            np.delete(labels == labels[row], row), np.delete(rows @ rows[row], row)
        )
        for row in range(40)
    ]
    assert means(evaluation.figures)["mAP"] == pytest.approx(np.mean(expected), abs=1e-4)


@pytest.mark.slow
def test_a_video_is_one_query_and_one_match(index_of: IndexOf, tmp_path: Path) -> None:
    """Against scikit-learn: the frame in its middle asks, and its best frame is found."""
    folder = tmp_path / "videos"
    for number in range(6):
        (folder / LABELS[number % 2]).mkdir(parents=True, exist_ok=True)
        pictures = [scene(100 * number + frame // 2) for frame in range(2 * (number + 2))]
        write_video(folder / LABELS[number % 2] / f"{number}.mp4", pictures, codec="mpeg4", rate=2)
    source = open_source(str(folder), data_dir=tmp_path)
    index = index_of(source)
    assert index.count() == sum(number + 2 for number in range(6))
    evaluation = evaluation_of(source, index)
    protocol = evaluation.figures.protocol
    assert (protocol.queries, protocol.images, protocol.left_out) == (6, 6, 6)
    for strip in evaluation.strips["Drawn at random"]:
        matches = [item_of(picture.id) for picture, _ in strip.matches]
        assert len(matches) == len(set(matches)) == 5
        assert strip.query.id not in matches

    frames: dict[str, list[Embeddings]] = {}
    for id_, record in index.fetch(index.list_ids().ids).items():
        frames.setdefault(item_of(id_), []).append(record.embedding)
    precisions = []
    middle = Sampling(max_frames=1, distinct=False)
    for item in source.items():
        assert isinstance(item.content, Video)
        side = min_side(FakeEmbedder().model.input_size)
        with read_frames(item.content.file, middle, max_pixels=10**6, min_side=side) as found:
            [frame] = found
        embedder = FakeEmbedder()
        query = embedder.embed([embedder.pixels(frame.image)])[0]
        others = sorted(frames.keys() - {item.id})
        scores = [max(cosine(query, one) for one in frames[other]) for other in others]
        relevant = [other.split("/")[1] == item.label for other in others]
        precisions.append(average_precision_score(relevant, scores))
    assert means(evaluation.figures)["mAP"] == pytest.approx(np.mean(precisions), abs=1e-4)
    assert evaluation.figures.retrieval is not None
    assert evaluation.figures.retrieval.chance == pytest.approx(2 / 5)


def cosine(one: Embeddings, other: Embeddings) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_another_image_with_an_id_of_the_index_is_no_such_image(index_of: IndexOf) -> None:
    index = index_of(noise_images("same", 40))
    assert evaluation_of(noise_images("same", 40, first=1000), index).figures.protocol.left_out == 0


def test_queries_whose_label_is_not_in_the_index_do_not_count(index_of: IndexOf) -> None:
    index = index_of(noise_images("indexed", 40))
    pictures = [noise(1000 + number) for number in range(8)]
    asked = images("asked", pictures, lambda number: ("cat", "unicorn", None)[number % 3])
    figures = evaluation_of(asked, index).figures
    assert figures.protocol.without_relevant == 5
    assert figures.retrieval is not None
    assert figures.retrieval.overall.queries == 3


class _Wrapped:
    def __init__(self, index: VectorIndex) -> None:
        self._index = index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)


class _Forgetful(_Wrapped):
    """An index whose search misses the best match."""

    def query_many(self, embeddings: Embeddings, top_k: int, **options: Any) -> list[list[Match]]:
        found = self._index.query_many(embeddings, top_k + 1, **options)
        return [matches[1:] for matches in found]


def test_what_the_store_does_not_find_is_seen(index_of: IndexOf) -> None:
    index = index_of(noise_images("indexed", 60))
    figures = evaluation_of(
        noise_images("asked", 20, first=1000),
        _Forgetful(index),  # type: ignore[arg-type]
    ).figures
    assert figures.store_recall.mean == pytest.approx(0.9)


class _Confident(_Wrapped):
    """An index that has a calibration."""

    calibration = Calibration(scores=(0.74, 0.76), confidences=(0.0, 0.9))


@pytest.mark.slow
def test_confidence_is_compared_with_precision(index_of: IndexOf, tmp_path: Path) -> None:
    index = index_of(noise_images("indexed", 60))
    asked = noise_images("asked", 20, first=1000)
    assert index.calibration is None
    plain = evaluation_of(asked, index)
    assert plain.figures.retrieval is not None
    assert plain.figures.retrieval.reliability is None
    assert "calibration" not in report.write_report(plain, tmp_path).read_text()

    evaluation = evaluation_of(asked, _Confident(index))  # type: ignore[arg-type]
    assert evaluation.figures.retrieval is not None
    reliability = evaluation.figures.retrieval.reliability
    assert reliability is not None
    embeddings = FakeEmbedder().embed([np.asarray(item.content) for item in asked.items()])
    confidences, correct = [], []
    for item, matches in zip(asked.items(), index.query_many(embeddings, 10), strict=True):
        for match in matches:
            confidences.append(_Confident.calibration.confidence(match.score))
            correct.append(match.label == item.label)
    shares, means_of_bins = calibration_curve(correct, confidences, n_bins=15)
    np.testing.assert_allclose([one.precision for one in reliability.bins], shares, atol=1e-6)
    np.testing.assert_allclose(
        [one.confidence for one in reliability.bins], means_of_bins, atol=1e-6
    )
    expected = sum(
        one.matches / 200 * abs(one.confidence - one.precision) for one in reliability.bins
    )
    assert reliability.expected_calibration_error == pytest.approx(expected, abs=1e-5)
    assert "expected calibration error" in report.summary(evaluation.figures)
    text = report.write_report(evaluation, tmp_path).read_text()
    assert f"{reliability.expected_calibration_error:.3f}</b>" in text


def test_stability_is_that_of_the_neighbours(index_of: IndexOf) -> None:
    index = index_of(noise_images("indexed", 60))
    symmetric = [np.concatenate([half := noise(n)[:, :16], half[:, ::-1]], 1) for n in range(20)]
    stability = evaluation_of(images("asked", symmetric, lambda _: None), index).figures.stability
    assert stability.keys() == CHANGES.keys()
    # To the fake embedder a picture is the same or quite another one.
    assert stability["mirrored"].overlap.mean == 1
    assert stability["mirrored"].cosine.mean == pytest.approx(1)
    assert stability["20 % brighter"].overlap.mean == pytest.approx(1 / 6, abs=0.1)


# --- without labels, and broken cases -------------------------------------------------------------


def test_without_labels_there_are_the_other_figures(index_of: IndexOf) -> None:
    pictures = [noise(number) for number in range(40)]
    unlabelled = images("asked", pictures[:10], lambda _: None)
    index = index_of(images("indexed", pictures[10:], lambda number: LABELS[number % 3]))
    evaluation = evaluation_of(unlabelled, index)
    assert evaluation.figures.retrieval is None
    assert evaluation.figures.without_labels == "none of the query images has a label"
    assert evaluation.figures.store_recall.mean == 1
    assert evaluation.strips.keys() == {"Drawn at random"}
    assert "none of the query images has a label" in report.summary(evaluation.figures)

    other = evaluation_of(images("asked", pictures[:5], lambda _: "unicorn"), index).figures
    assert "labels" in (other.without_labels or "")


def test_an_index_without_labels(index_of: IndexOf) -> None:
    index = index_of(images("indexed", [noise(number) for number in range(30)], lambda _: None))
    figures = evaluation_of(noise_images("asked", 5, first=1000), index).figures
    assert figures.without_labels == "no image in the index has a label"


def test_one_image_is_enough(index_of: IndexOf) -> None:
    index = index_of(noise_images("indexed", 1))
    evaluation = evaluation_of(images("asked", [noise(5)], lambda _: "bird"), index)
    assert means(evaluation.figures)["precision@1"] == 1
    assert evaluation.figures.retrieval is not None
    assert evaluation.figures.retrieval.pairs.roc_auc is None
    assert evaluation.embedding_map is None


@pytest.mark.slow
def test_images_that_cannot_be_read_are_listed(index_of: IndexOf) -> None:
    def items() -> Iterator[Item]:
        yield Item("good", "cat", noise(1), {})
        yield Item("bad", "cat", b"no image", {})
        yield Item("gone", "cat", ImageError("the file cannot be read"), {})

    index = index_of(noise_images("indexed", 30))
    evaluation = evaluation_of(source_of(items, 3), index)
    assert evaluation.unreadable.keys() == {"bad", "gone"}
    assert evaluation.figures.protocol.queries == 1

    def unreadable() -> Iterator[Item]:
        yield Item("bad", "cat", b"no image", {})

    with pytest.raises(SourceError, match="not an image"):
        evaluation_of(source_of(unreadable, 1), index)


def test_an_empty_index_is_an_error(index_of: IndexOf) -> None:
    with pytest.raises(IndexNotFoundError, match="no images yet"):
        evaluation_of(noise_images("asked", 3), index_of(noise_images("indexed", 0)))


# --- the report -----------------------------------------------------------------------------------


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_report_needs_nothing_else_and_escapes_what_it_shows(
    index_of: IndexOf, tmp_path: Path
) -> None:
    pictures = [noise(number) for number in range(40)]
    index = index_of(
        images("in<b onload=x>dexed", pictures, lambda number: (HOSTILE, "cat")[number % 2])
    )

    def items() -> Iterator[Item]:
        yield Item("<img src=x>", HOSTILE, noise(1000), {})
        yield Item("broken<img src=x>", HOSTILE, b"<i>", {})

    evaluation = evaluation_of(Source("so<script>urce", 2, items), index)
    path = report.write_report(evaluation, tmp_path)
    page = _Page(path.read_text())
    assert not {"script", "link", "iframe", "object", "base", "b onload=x"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in {"src", "href"}:
            assert value.startswith("data:image/jpeg;base64,")
        if name == "style":
            assert re.fullmatch(r"(--share: \d+%|background: var\(--[a-z]+\))", value)
    style = re.findall(r"<style>.*?</style>", path.read_text(), re.DOTALL)[0]
    assert "url(" not in style
    assert "@import" not in style
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in (
        page.attributes
    )
    assert ("title", HOSTILE) in page.attributes
    assert HOSTILE in page.texts
    assert "49" not in [text.strip() for text in page.texts if "{{" in text]

    figures = Figures.model_validate_json((tmp_path / report.FIGURES_FILE).read_text())
    assert figures == evaluation.figures


def test_the_report_of_an_index_without_labels(index_of: IndexOf, tmp_path: Path) -> None:
    index = index_of(images("indexed", [noise(number) for number in range(30)], lambda _: None))
    path = report.write_report(evaluation_of(noise_images("asked", 5), index), tmp_path)
    text = path.read_text()
    assert "no image in the index has a label" in text
    assert "precision@10</th>" not in text
    assert "neighbours that stay" in text


@pytest.mark.slow
def test_many_labels_make_no_matrix(index_of: IndexOf, tmp_path: Path) -> None:
    pictures = [noise(number) for number in range(120)]
    index = index_of(images("indexed", pictures, lambda number: f"label {number % 40}"))
    asked = images("asked", pictures[:40], lambda number: f"label {number}")
    text = report.write_report(evaluation_of(asked, index), tmp_path).read_text()
    assert 'class="matrix"' not in text
    assert "found instead" in text


# --- the command line -----------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["worker", "evaluate", *arguments])
    return command_line.main()


@pytest.mark.long
def test_evaluate_as_users_run_it(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "drawn"
    for kind in sample.KINDS:
        (folder / kind).mkdir(parents=True)
        for seed in range(5):
            draw(kind, seed).save(folder / kind / f"{seed}.png")
    (folder / sample.KINDS[0] / "broken.png").write_bytes(b"no image")
    assert run("worker", "ingest", str(folder))[0] == 3
    output = tmp_path / "a folder" / "report"
    code, out, err = run("worker", "evaluate", str(folder), "--output", str(output))
    assert code == 3
    assert "broken.png" in err
    assert "50 queries" in out
    assert str(output / "report.html") in out
    figures = Figures.model_validate_json((output / "figures.json").read_text())
    assert figures.protocol.model == open_index(settings).manifest.model
    assert figures.protocol.left_out == 50
    assert figures.retrieval is not None
    assert figures.retrieval.chance == pytest.approx(4 / 49, abs=1e-6)
    assert means(figures)["precision@1"] > 0.5


def test_what_users_can_get_wrong(
    index_of: IndexOf,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    folder = str(folder_of(tmp_path / "photos", 30))

    def failed(code: int, message: str, *arguments: str) -> None:
        assert command(monkeypatch, *arguments) == code
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error

    failed(1, "no index", folder)
    index_of(noise_images("indexed", 30))
    failed(2, "name the images to search for")
    failed(2, "there is no", str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    failed(2, "has no images", str(tmp_path / "empty"))
    (tmp_path / "file").write_text("")
    failed(2, "choose another folder with --output", folder, "--output", str(tmp_path / "file"))
    monkeypatch.setenv("IMAGE_SEARCH_WEIGHTS", "bundled")
    failed(1, "the index was built with", folder)


def test_without_its_extra_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for name in ("report", "pages"):
        monkeypatch.delitem(sys.modules, f"worker.{name}")
        monkeypatch.delattr(worker, name)
    assert command(monkeypatch) == 2
    assert "pip install 'image-search[evaluate]'" in capsys.readouterr().err


def test_a_seed_is_no_negative_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, "--seed", "-1")
    assert stopped.value.code == 2
    assert "less than 0" in capsys.readouterr().err
