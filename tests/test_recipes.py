"""Recipes: fitted to a source, against scikit-learn, and what happens where there is too little."""

import dataclasses
import hashlib
import io
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from image_search.embedding import Embedder
from image_search.errors import ImageError, SettingsError
from image_search.recipe import Form, Recipe
from image_search.settings import load_settings
from image_search.values import DIMENSION, Pooling
from tests.support.images import draw
from worker.recipes import (
    TooFewImagesError,
    fit_components,
    fit_discriminant,
    fit_neighbours,
    fit_recipe,
    form_for,
)
from worker.sources import Item, Source, open_source, sample

POOLING = Pooling((4, 5), 3)
FORMS = (form_for(96), form_for(160))
ENDS = np.cumsum(POOLING.channels)[:-1]
FEATURES = sum(POOLING.channels)


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


def prepared(features: Any, form: Form) -> Any:
    """As the docstring of Form says, feature by feature."""
    blocks = np.split(features.astype(np.float64) ** form.power, ENDS, axis=1)
    return np.concatenate([b / np.linalg.norm(b, axis=1, keepdims=True) for b in blocks], axis=1)


def weighted(features: Any, form: Form, weights: tuple[float, float]) -> Any:
    """Centred, with so much of the deviation in each block."""
    blocks = np.split(prepared(features, form), ENDS, axis=1)
    scaled = [
        weight * block / np.sqrt(block.var(axis=0).sum())
        for weight, block in zip(weights, blocks, strict=True)
    ]
    rows = np.concatenate(scaled, axis=1)
    return rows - rows.mean(axis=0)


@pytest.fixture(scope="module")
def components() -> Recipe:
    return fit_components(random_features(150), FORMS[1])


def neighbours_label(embeddings: Any, labels: list[str | None]) -> float:
    """The share of the nearest images that have the same label."""
    similarities = embeddings @ embeddings.T
    np.fill_diagonal(similarities, -np.inf)
    return float(np.mean(np.array(labels)[similarities.argmax(axis=1)] == np.array(labels)))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fit_to", [fit_components, fit_neighbours])
def test_embeddings_are_of_unit_length(fit_to: Callable[..., Recipe], form: Form) -> None:
    embeddings = fit_to(random_features(150), form).apply(random_features(150))
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (150, DIMENSION)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


@pytest.mark.slow
def test_features_without_any_activation_stay_finite(components: Recipe) -> None:
    assert np.isfinite(components.apply(np.zeros((2, FEATURES), np.float32))).all()


@pytest.mark.slow
@pytest.mark.parametrize(("form", "weights"), [(FORMS[0], (1, 1)), (FORMS[1], (0.5, 1))])
def test_components_are_those_of_scikit_learn(form: Form, weights: tuple[float, float]) -> None:
    features = random_features(600)
    recipe = fit_components(features, form)
    rows = weighted(features, form, weights)
    pca = PCA(30).fit(rows)
    variances = pca.explained_variance_ + 0.1 * shrinkage_unit(rows)
    expected = pca.transform(rows) * variances**0.125
    found = (prepared(features, form) - recipe.mean) @ recipe.projection[:, :30]
    for column in range(30):
        correlation = np.corrcoef(expected[:, column], found[:, column])[0, 1]
        assert abs(correlation) > 0.999
    ratios = found.std(axis=0) / expected.std(axis=0)
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-2)


@pytest.mark.slow
def test_directions_of_neighbours_solve_the_generalised_problem_of_scipy() -> None:
    features, _ = labelled_features(600, 30)
    form = FORMS[0]
    rows = weighted(features, form, (1, 1))
    # Whom each is nearest to, by components that are half whitened, from scikit-learn.
    pca = PCA(DIMENSION).fit(rows)
    variances = pca.explained_variance_ * 599 / 600
    seen = pca.transform(rows) * (variances + 0.1 * variances.mean()) ** -0.125
    search = NearestNeighbors(n_neighbors=10, metric="cosine").fit(seen)
    among = search.kneighbors_graph().toarray().astype(bool)
    one, other = np.nonzero(np.triu(among & among.T))
    assert len(one) > 300
    within = (rows[one] - rows[other]).T @ (rows[one] - rows[other]) / (2 * len(one))
    within += 1000 / 600 * np.trace(within) / len(within) * np.eye(len(within))
    ratios, directions = scipy.linalg.eigh(rows.T @ rows / 600, within)
    kept = slice(None, -DIMENSION - 1, -1)
    weights = np.sqrt(1 - ratios[kept][-1] / ratios[kept])
    expected = rows @ (directions[:, kept] * weights)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = fit_neighbours(features, form).apply(features)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=5e-3)


@pytest.mark.slow
def test_neighbours_are_found_better_than_by_components() -> None:
    features, labels = labelled_features(1200, 30)
    known, held_out = features[:600], features[600:]
    by_components, by_neighbours = (
        neighbours_label(fit_to(known, FORMS[0]).apply(held_out), labels[600:])
        for fit_to in (fit_components, fit_neighbours)
    )
    assert by_neighbours > by_components


@pytest.mark.slow
def test_a_folder_of_copies_can_be_fitted() -> None:
    features = np.repeat(random_features(15), 12, axis=0)
    embeddings = fit_neighbours(features, FORMS[0]).apply(features)
    assert np.isfinite(embeddings).all()


def shrinkage_unit(rows: Any) -> float:
    """The mean variance of as many principal components as an embedding has."""
    return float(PCA(DIMENSION).fit(rows).explained_variance_.mean())


@pytest.mark.slow
def test_a_discriminant_finds_what_tells_labels_apart() -> None:
    form = FORMS[0]
    features, labels = labelled_features(1200, 4)
    known, held_out = features[:600], features[600:]
    recipe = fit_discriminant(known, labels[:600], form)
    by_label = recipe.apply(held_out)
    without = fit_components(known, form).apply(held_out)
    assert neighbours_label(without, labels[600:]) < 0.6
    assert neighbours_label(by_label, labels[600:]) > 0.95
    # As good as scikit-learn's own in telling which label it is.
    theirs = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto").fit(
        prepared(known, form), labels[:600]
    )
    nearest = KNeighborsClassifier(5).fit(
        fit_discriminant(known, labels[:600], form).apply(known), labels[:600]
    )
    assert (
        nearest.score(by_label, labels[600:])
        >= theirs.score(prepared(held_out, form), labels[600:]) - 0.02
    )


@pytest.mark.slow
def test_images_without_a_label_and_rare_labels_are_left_out() -> None:
    features, labels = labelled_features(700, 2)
    expected = fit_discriminant(features[:600], labels[:600], FORMS[0])
    others: list[str | None] = [None] * 90 + ["rare"] * 10
    found = fit_discriminant(features, labels[:600] + others, FORMS[0])
    assert found.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    "labels", [[None] * 600, ["one"] * 600, [f"label {i}" for i in range(600)], ["a", "b"] * 20]
)
def test_too_few_labels_are_told(labels: list[str | None]) -> None:
    with pytest.raises(TooFewImagesError, match="too few"):
        fit_discriminant(random_features(len(labels)), labels, FORMS[0])


def test_the_same_image_again_and_again_is_nothing_to_fit_to() -> None:
    with pytest.raises(TooFewImagesError, match="all the same"):
        fit_neighbours(np.repeat(random_features(1), 150, axis=0), FORMS[0])


def test_a_recipe_is_read_as_it_was_written(components: Recipe) -> None:
    features = random_features(150)
    again = Recipe.from_bytes(components.to_bytes())
    assert (again.name, again.form) == (components.name, components.form)
    assert again.fingerprint == components.fingerprint
    np.testing.assert_array_equal(again.apply(features), components.apply(features))


@pytest.mark.slow
def test_a_recipe_of_an_earlier_version_goes_on_as_it_was() -> None:
    rng = np.random.default_rng(4)
    mean, projection = rng.random(1408, np.float32), rng.random((1408, DIMENSION), np.float32)
    halves = projection.astype("<f2")
    content = io.BytesIO()
    np.savez(content, name="whitening", mean=mean, projection=halves)
    recipe = Recipe.from_bytes(content.getvalue())
    averages = rng.random((5, 1408), np.float32)
    expected = (np.sqrt(averages) - mean) @ halves.astype(np.float32)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(recipe.apply(averages), expected, atol=1e-5)
    assert (recipe.form.pooling.blocks, recipe.form.pooling.exponent) == ((2, 3, 4, 5), 1)
    numbers = mean.astype("<f4").tobytes() + halves.astype("<f4").tobytes()
    assert recipe.fingerprint == hashlib.sha256(b"whitening" + numbers).hexdigest()[:16]


def test_a_recipe_of_a_later_version_is_refused(components: Recipe) -> None:
    with np.load(io.BytesIO(components.to_bytes())) as arrays:
        later = {**arrays, "format": 3}
    content = io.BytesIO()
    np.savez(content, **later)
    with pytest.raises(ValueError, match="format is 3"):
        Recipe.from_bytes(content.getvalue())


def test_the_fingerprint_tells_forms_apart(components: Recipe) -> None:
    other = dataclasses.replace(components, form=FORMS[0])
    assert other.fingerprint != components.fingerprint


def test_the_fingerprint_is_of_what_was_fitted(components: Recipe) -> None:
    assert fit_components(random_features(150), FORMS[1]).fingerprint == components.fingerprint
    assert (
        fit_components(random_features(150, seed=1), FORMS[1]).fingerprint != components.fingerprint
    )


@pytest.mark.parametrize("content", [b"", b"not a recipe"])
def test_what_is_no_recipe_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a recipe"):
        Recipe.from_bytes(content)


# --- from a source --------------------------------------------------------------------------------


def fit(source: Source, **settings: Any) -> Recipe | None:
    fitted = fit_recipe(source, "bundled", 32, (), load_settings(**settings), threading.Event())
    return fitted[0] if fitted else None


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
    assert recipe.name == "neighbours"
    with_recipe = Embedder.load("bundled", 32, (), recipe)
    assert with_recipe.model == embedder.model.model_copy(
        update={"recipe": "neighbours", "recipe_fingerprint": recipe.fingerprint}
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
    assert "python -m worker refit SOURCE" in line


def test_whitening_is_only_for_older_indexes() -> None:
    with pytest.raises(SettingsError, match=r"IMAGE_SEARCH_RECIPE=whitening.*auto"):
        fit(drawn(120), recipe="whitening")


def test_plain_embeddings_need_no_image_to_be_read() -> None:
    reads: list[int] = []
    assert fit(drawn(600, reads), recipe="none") is None
    assert reads == []


@pytest.mark.slow
def test_unreadable_images_and_those_beyond_the_total_do_not_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    good = list(drawn(110).items())
    broken = [Item(f"broken {n}", None, ImageError("damaged"), {}) for n in range(5)]
    unused = [Item(f"unused {n}", None, b"never opened", {}) for n in range(5)]
    source = Source("mixed", 115, lambda: iter([*broken, *good, *unused]))
    one, other = fit(source), fit(Source("good", 115, lambda: iter(broken + good)))
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
    open_: Callable[..., int] = os.open

    def note_and_open(path: Path, *options: Any) -> int:
        read.append(Path(path).name)
        return open_(path, *options)

    monkeypatch.setattr(os, "open", note_and_open)
    picked = list(source.pick({3, 17, 29}))
    assert [item.metadata["path"] for item in picked] == [
        "label/03.png",
        "label/17.png",
        "label/29.png",
    ]
    assert read == ["03.png", "17.png", "29.png"]
    everything = list(source.items())
    assert [item.id for item in picked] == [everything[number].id for number in (3, 17, 29)]
