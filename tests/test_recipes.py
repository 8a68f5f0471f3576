"""Recipes: fitted to a source, against scikit-learn, and what happens where there is too little."""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import KNeighborsClassifier

from image_search.embedding import Embedder
from image_search.errors import ImageError
from image_search.recipe import CHANNELS, FEATURES, Recipe
from image_search.settings import load_settings
from image_search.values import DIMENSION
from tests.support.images import draw
from worker import recipes
from worker.recipes import TooFewImagesError, fit_discriminant, fit_recipe, fit_whitening
from worker.sources import Item, Source, open_source, sample


def random_features(count: int, seed: int = 0) -> Any:
    """Correlated, and at least zero, as those of a network are."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).standard_normal((40, FEATURES))
    return np.maximum(rng.standard_normal((count, 40)) @ mixing, 0).astype(np.float32)


def labelled_features(count: int, labels: int) -> tuple[Any, list[str | None]]:
    """Labels differ in all features, but by less than the images of one label do."""
    numbers = np.arange(count) % labels
    offsets = np.random.default_rng(2).random((labels, FEATURES))
    noise = np.random.default_rng(3).random((count, FEATURES))
    features = 3 * random_features(count) + 4 * offsets[numbers] + noise
    return features.astype(np.float32), [f"label {number}" for number in numbers]


@pytest.fixture(scope="module")
def whitening() -> Recipe:
    return fit_whitening(random_features(150))


def neighbours_label(embeddings: Any, labels: list[str | None]) -> float:
    """The share of the nearest images that have the same label."""
    similarities = embeddings @ embeddings.T
    np.fill_diagonal(similarities, -np.inf)
    return float(np.mean(np.array(labels)[similarities.argmax(axis=1)] == np.array(labels)))


@pytest.mark.slow
def test_whitened_embeddings_are_of_unit_length(whitening: Recipe) -> None:
    embeddings = whitening.apply(random_features(150))
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (150, DIMENSION)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


@pytest.mark.slow
def test_directions_of_whitening_are_those_of_scikit_learn() -> None:
    features = random_features(600)
    recipe = fit_whitening(features)
    roots = np.sqrt(features)
    blocks = np.split(roots, np.cumsum(CHANNELS)[:-1], axis=1)
    weighted = np.concatenate(
        [block / np.sqrt(block.var(axis=0).sum()) for block in blocks],
        axis=1,
    )
    pca = PCA(30).fit(weighted)
    deviations = (
        pca.explained_variance_ + recipes._WHITENING_SHRINKAGE * shrinkage_unit(weighted)
    ) ** 0.5
    expected = pca.transform(weighted) / deviations**recipes._WHITENING_POWER
    found = (roots - recipe.mean) @ recipe.projection[:, :30]
    for column in range(30):
        correlation = np.corrcoef(expected[:, column], found[:, column])[0, 1]
        assert abs(correlation) > 0.999
    ratios = found.std(axis=0) / expected.std(axis=0)
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-2)


def shrinkage_unit(rows: Any) -> float:
    """The mean variance of as many principal components as an embedding has."""
    return float(PCA(DIMENSION).fit(rows).explained_variance_.mean())


@pytest.mark.slow
def test_a_discriminant_finds_what_tells_labels_apart() -> None:
    features, labels = labelled_features(1200, 4)
    known, held_out = features[:600], features[600:]
    recipe = fit_discriminant(known, labels[:600])
    by_label = recipe.apply(held_out)
    without = fit_whitening(known).apply(held_out)
    assert neighbours_label(without, labels[600:]) < 0.6
    assert neighbours_label(by_label, labels[600:]) > 0.95
    # As good as scikit-learn's own in telling which label it is.
    theirs = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto").fit(
        np.sqrt(known), labels[:600]
    )
    nearest = KNeighborsClassifier(5).fit(
        fit_discriminant(known, labels[:600]).apply(known), labels[:600]
    )
    assert (
        nearest.score(by_label, labels[600:])
        >= theirs.score(np.sqrt(held_out), labels[600:]) - 0.02
    )


@pytest.mark.slow
def test_images_without_a_label_and_rare_labels_are_left_out() -> None:
    features, labels = labelled_features(700, 2)
    expected = fit_discriminant(features[:600], labels[:600])
    others: list[str | None] = [None] * 90 + ["rare"] * 10
    assert fit_discriminant(features, labels[:600] + others).fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    "labels", [[None] * 600, ["one"] * 600, [f"label {i}" for i in range(600)], ["a", "b"] * 20]
)
def test_too_few_labels_are_told(labels: list[str | None]) -> None:
    with pytest.raises(TooFewImagesError, match="too few"):
        fit_discriminant(random_features(len(labels)), labels)


def test_the_same_image_again_and_again_is_nothing_to_fit_to() -> None:
    with pytest.raises(TooFewImagesError, match="all the same"):
        fit_whitening(np.repeat(random_features(1), 150, axis=0))


def test_a_recipe_is_read_as_it_was_written(whitening: Recipe) -> None:
    features = random_features(150)
    again = Recipe.from_bytes(whitening.to_bytes())
    assert (again.name, again.fingerprint) == (whitening.name, whitening.fingerprint)
    np.testing.assert_array_equal(again.apply(features), whitening.apply(features))


@pytest.mark.slow
def test_the_fingerprint_is_of_what_was_fitted(whitening: Recipe) -> None:
    assert fit_whitening(random_features(150)).fingerprint == whitening.fingerprint
    assert fit_whitening(random_features(150, seed=1)).fingerprint != whitening.fingerprint


@pytest.mark.parametrize("content", [b"", b"not a recipe"])
def test_what_is_no_recipe_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a recipe"):
        Recipe.from_bytes(content)


# --- from a source --------------------------------------------------------------------------------


def fit(source: Source, limit: int | None = None, **settings: Any) -> Recipe | None:
    return fit_recipe(
        source, "bundled", (), load_settings(**settings), limit=limit, stop=threading.Event()
    )


def drawn(count: int, reads: list[int] | None = None) -> Source:
    """Ordered by label, as sources are."""

    def items() -> Iterator[Item]:
        for number in range(count):
            if reads is not None:
                reads.append(number)
            kind = sample.KINDS[number * len(sample.KINDS) // count]
            yield Item(str(number), kind, np.asarray(draw(kind, number)), {})

    return Source("drawn", count, items)


@pytest.mark.slow
def test_embeddings_with_a_recipe_are_its_own(embedder: Embedder) -> None:
    source = drawn(120)
    recipe = fit(source)
    assert recipe is not None
    assert recipe.name == "whitening"
    with_recipe = Embedder("bundled", 32, (), recipe)
    assert with_recipe.model == embedder.model.model_copy(
        update={"recipe": "whitening", "recipe_fingerprint": recipe.fingerprint}
    )
    pixels = [embedder.pixels(Image.fromarray(np.asarray(i.content))) for i in source.items()]
    embeddings = with_recipe.embed(pixels)
    assert abs(embeddings.mean(axis=0)).max() < abs(embedder.embed(pixels).mean(axis=0)).max()
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    # Far apart, where those of the plain network crowd.
    assert (embeddings @ embeddings.T).mean() < 0.1


@pytest.mark.parametrize(("recipe", "count"), [("auto", 40), ("discriminant", 40)])
def test_too_few_images_give_plain_embeddings_and_one_line(
    caplog: pytest.LogCaptureFixture, recipe: str, count: int
) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit(drawn(count), recipe=recipe) is None
    [line] = caplog.messages
    assert "recipe none" in line


def test_plain_embeddings_need_no_image_to_be_read() -> None:
    reads: list[int] = []
    assert fit(drawn(600, reads), recipe="none") is None
    assert reads == []


@pytest.mark.slow
def test_unreadable_images_and_those_beyond_the_limit_do_not_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    good = list(drawn(110).items())
    broken = [Item(f"broken {n}", None, ImageError("damaged"), {}) for n in range(5)]
    unused = [Item(f"unused {n}", None, b"never opened", {}) for n in range(5)]
    source = Source("mixed", 120, lambda: iter([*broken, *good, *unused]))
    one, other = fit(source, limit=115), fit(Source("good", 115, lambda: iter(broken + good)))
    assert one is not None
    assert other is not None
    assert one.fingerprint == other.fingerprint
    assert caplog.messages == []


def test_only_what_was_drawn_is_read_from_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        file = tmp_path / "label" / f"{number:02d}.png"
        file.parent.mkdir(exist_ok=True)
        draw(sample.KINDS[0], number).save(file)
    source = open_source(str(tmp_path), split="train", data_dir=tmp_path)
    read: list[str] = []
    read_bytes: Callable[[Path], bytes] = Path.read_bytes

    def note_and_read(path: Path) -> bytes:
        read.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", note_and_read)
    picked = list(source.pick({3, 17, 29}))
    assert [item.metadata["path"] for item in picked] == [
        "label/03.png",
        "label/17.png",
        "label/29.png",
    ]
    assert read == ["03.png", "17.png", "29.png"]
    everything = list(source.items())
    assert [item.id for item in picked] == [everything[number].id for number in (3, 17, 29)]
