"""Embeddings against Keras' own VGG16, and the weights' three origins."""

import hashlib
import importlib
import importlib.machinery
import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from image_search import embedding, weights
from image_search.embedding import Embedder, Network, has_gpu, measure_activation_maxima
from image_search.engines import tensorflow
from image_search.engines.tensorflow import import_keras
from image_search.errors import IndexMismatchError, WeightsError
from image_search.manifest import Manifest
from image_search.values import DIMENSION, PLAIN_POOLING, Embeddings, Pooling
from image_search.weights import choose_weights, load_weights
from tests.support import ROOT, SHARED
from tests.support.images import draw
from worker.sources import open_source, sample

ORIGINAL = SHARED / "data" / "vgg16-imagenet-notop.h5"
# Mean of ImageNet's training images in BGR order, subtracted by VGG16's authors:
# https://www.robots.ox.ac.uk/~vgg/research/very_deep/
MEAN_BGR = np.array([103.939, 116.779, 123.68])
BUNDLED_FOLDER = ROOT / "image_search" / "bundled"


needs_original = pytest.mark.skipif(
    not ORIGINAL.exists(), reason="the original of the bundled weights is not at hand"
)
# Of whitening, which earlier versions fitted, and of the recipes since then.
POOLINGS = (Pooling((2, 3, 4, 5), 1), Pooling((4, 5), 3))
# Keras' own saving meets NumPy's newest rules.
saves_with_keras = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def pictures(count: int, size: int = 32) -> Any:
    kinds = [sample.KINDS[i % len(sample.KINDS)] for i in range(count)]
    return np.stack(
        [np.asarray(draw(kind, i).resize((size, size))) for i, kind in enumerate(kinds)]
    )


def bundled_arrays() -> list[Any]:
    return [array for convolution in load_weights("bundled")[1] for array in convolution]


def keras_embeddings(pixels: Any, size: int = 32) -> Any:
    """Keras' application with the bundled weights, run as its documentation says."""
    keras = import_keras()
    network = keras.applications.VGG16(
        weights=None, include_top=False, pooling="avg", input_shape=(size, size, 3)
    )
    network.set_weights(bundled_arrays())
    return network.predict(pixels[..., ::-1] - MEAN_BGR, verbose=0)


def cosines(one: Embeddings, other: Embeddings) -> Any:
    products = (one * other).sum(axis=1)
    return products / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.long
def test_embeddings_are_those_of_keras(embedder: Embedder) -> None:
    images = pictures(20)
    embeddings = embedder.embed(images)
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (20, DIMENSION)
    np.testing.assert_allclose(embeddings, keras_embeddings(images), rtol=1e-3, atol=1e-3)


@pytest.mark.long
def test_larger_inputs_are_averaged_over_the_last_feature_map() -> None:
    images = pictures(2, size=64)
    embeddings = Embedder.load("bundled", 64).embed(images)
    np.testing.assert_allclose(embeddings, keras_embeddings(images, 64), rtol=1e-3, atol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("size", [(200, 120), (33, 31), (16, 16), (1, 1)])
def test_other_sizes_are_resized_with_antialiasing(
    embedder: Embedder, size: tuple[int, int]
) -> None:
    image = draw("castle", 0).resize(size)
    pixels = embedder.pixels(image)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    # Keras' bilinear filter with antialiasing is the same triangle.
    expected = import_keras().ops.image.resize(
        np.asarray(image, np.float32), (32, 32), interpolation="bilinear", antialias=True
    )
    assert np.abs(pixels - np.asarray(expected)).mean() < 1


@pytest.mark.slow
def test_an_embedding_does_not_depend_on_its_batch(embedder: Embedder) -> None:
    images = pictures(70)
    together = embedder.embed(images)
    alone = np.concatenate([embedder.embed(images[i : i + 1]) for i in range(70)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_an_empty_batch_has_no_embeddings(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, DIMENSION)


def test_similar_pictures_have_similar_embeddings(embedder: Embedder) -> None:
    original = draw("boat", 0)
    darker = original.point(lambda value: value * 0.9)
    other = draw("cactus", 0)
    first, second, third = embedder.embed([embedder.pixels(i) for i in (original, darker, other)])
    assert cosines(first[None], second[None]) > cosines(first[None], third[None])


@pytest.mark.long
@needs_original
@pytest.mark.parametrize(("size", "count"), [(32, 200), (96, 24)])
def test_bundled_weights_embed_as_their_original(real_images: Any, size: int, count: int) -> None:
    enlarged = [Image.fromarray(image).resize((size, size)) for image in real_images[:count]]
    pixels = np.stack([np.asarray(image) for image in enlarged])
    # The same for both, as int8 rounds elsewhere when they differ a little.
    maxima = measure_activation_maxima(str(ORIGINAL), pixels[:100])
    for activation_maxima, least in (((), 0.9995), (maxima, 0.999)):
        bundled = Embedder.load("bundled", size, activation_maxima).embed(pixels)
        original = Embedder.load(str(ORIGINAL), size, activation_maxima).embed(pixels)
        assert cosines(bundled, original).min() >= least
    features, of_original = (
        Network(name, size, (), POOLINGS[1]).measure([pixels])
        for name in ("bundled", str(ORIGINAL))
    )
    assert cosines(features, of_original).min() >= 0.9998


@pytest.mark.long
@needs_original
def test_bundled_weights_are_made_of_their_original(tmp_path: Path) -> None:
    made = tmp_path / "made.npz"
    command = [sys.executable, "-m", "tools.bundle_weights", str(ORIGINAL), str(made)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    card = (BUNDLED_FOLDER / "README.md").read_text()
    [fingerprint] = re.findall(r"\((\w{16})\)", done.stdout)
    assert fingerprint in card
    assert weights.fingerprint(load_weights("bundled")[1]) in card
    [bundled] = BUNDLED_FOLDER.glob("*.npz")
    with np.load(made) as ours, np.load(bundled) as theirs:
        assert set(ours) == set(theirs)
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name], strict=True)


def test_bundled_weights_are_compact_and_attributed() -> None:
    assert sum(file.stat().st_size for file in BUNDLED_FOLDER.glob("*.npz")) <= 16e6
    card = (BUNDLED_FOLDER / "README.md").read_text()
    for asked in ("Simonyan", "Zisserman", "https://creativecommons.org/licenses/by/4.0/"):
        assert asked in card


class Gpu:
    """Stands in for a GPU: TensorFlow is told that there is one, and computes on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
        import_keras()
        import tensorflow as tf

        self.memory_grows = False
        experimental = tf.config.experimental
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda *_: [self])
        monkeypatch.setattr(experimental, "set_memory_growth", self._set_memory_growth)
        monkeypatch.setattr(
            experimental, "get_device_details", lambda _gpu: {"compute_capability": capability}
        )

    def _set_memory_growth(self, gpu: "Gpu", enable: bool) -> None:  # noqa: FBT001
        assert gpu is self
        self.memory_grows = enable


@pytest.mark.long
def test_on_a_gpu_with_tensor_cores_tensorflow_computes_in_float16(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(20)
    gpu = Gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(embedding, "has_gpu", lambda: True)
    on_gpu = Embedder.load("bundled", 32)
    assert gpu.memory_grows
    assert on_gpu.model == embedder.model
    embeddings = on_gpu.embed(images)
    assert embeddings.dtype == np.float32
    assert cosines(embeddings, embedder.embed(images)).min() > 0.9999
    assert (embeddings == embeddings.astype(np.float16)).all()
    assert import_keras().config.dtype_policy().name == "float32"


@pytest.mark.long
def test_on_an_older_gpu_tensorflow_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(3)
    expected = keras_embeddings(images)
    Gpu(monkeypatch, (6, 1))
    monkeypatch.setattr(embedding, "has_gpu", lambda: True)
    embeddings = Embedder.load("bundled", 32).embed(images)
    np.testing.assert_allclose(embeddings, expected, rtol=1e-3, atol=1e-3)
    assert not (embeddings == embeddings.astype(np.float16)).all()


@pytest.mark.slow
@pytest.mark.parametrize("built_for_gpu", [True, False])
def test_a_gpu_that_is_missing_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    built_for_gpu: bool,  # noqa: FBT001
) -> None:
    has_gpu.cache_clear()
    find_spec = importlib.util.find_spec
    spec = importlib.machinery.ModuleSpec("nvidia", None) if built_for_gpu else None
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: spec if name == "nvidia" else find_spec(name)
    )
    assert not has_gpu()
    assert not has_gpu()
    assert caplog.messages == (
        ["no GPU found: embedding on the CPU, which is slower"] if built_for_gpu else []
    )
    has_gpu.cache_clear()


# --- engines and precisions -----------------------------------------------------------------------


@pytest.mark.long
def test_engines_agree_on_real_images(embedder: Embedder, real_images: Any) -> None:
    reference = tensorflow.compile_forward(load_weights("bundled")[1], 32, [PLAIN_POOLING])
    images = real_images[:300]
    assert cosines(embedder.embed(images), reference(images)).min() >= 0.9999


@pytest.mark.long
@pytest.mark.parametrize("pooling", POOLINGS)
def test_engines_agree_on_the_features_of_recipes(real_images: Any, pooling: Pooling) -> None:
    enlarged = real_images[:60].repeat(2, axis=1).repeat(2, axis=2)
    features = Network("bundled", 64, (), pooling).measure([enlarged[:20], enlarged[20:]])
    assert features.shape == (60, sum(pooling.channels))
    reference = tensorflow.compile_forward(load_weights("bundled")[1], 64, [pooling])
    expected = reference(enlarged)
    starts = np.cumsum([0, *pooling.channels])
    for start, end in itertools.pairwise(starts):
        assert cosines(features[:, start:end], expected[:, start:end]).min() >= 0.9999


@pytest.mark.long
def test_int8_keeps_embeddings_and_neighbours_of_real_images(
    embedder: Embedder, real_images: Any
) -> None:
    int8 = Embedder.load("bundled", 32, measure_activation_maxima("bundled", real_images[:256]))
    assert int8.model == embedder.model.model_copy(update={"precision": "int8"})
    images = real_images[:600]
    embeddings = [engine.embed(images) for engine in (embedder, int8)]
    similarities = cosines(*embeddings)
    assert similarities.mean() > 0.999
    assert similarities.max() < 1
    neighbours = []
    for found in embeddings:
        rows = found / np.linalg.norm(found, axis=1, keepdims=True)
        neighbours.append(np.argsort(-rows[480:] @ rows[:480].T, axis=1)[:, :10])
    overlap = [len(set(one) & set(other)) for one, other in zip(*neighbours, strict=True)]
    assert np.mean(overlap) > 9


@pytest.mark.long
@pytest.mark.parametrize("pooling", POOLINGS)
def test_features_of_recipes_are_means_of_keras_maps(pooling: Pooling) -> None:
    images = pictures(6, size=64)
    keras = import_keras()
    network = keras.applications.VGG16(weights=None, include_top=False, input_shape=(64, 64, 3))
    network.set_weights(bundled_arrays())
    maps = keras.Model(
        network.input, [network.get_layer(f"block{block}_pool").output for block in pooling.blocks]
    ).predict(images[..., ::-1] - MEAN_BGR, verbose=0)
    powers = [np.power(found, pooling.exponent).mean(axis=(1, 2)) for found in maps]
    expected = np.power(np.concatenate(powers, axis=1), 1 / pooling.exponent)
    found = Network("bundled", 64, (), pooling).measure([images[:4], images[4:]])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.long
def test_means_in_float16_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(4, size=64)
    expected = Network("bundled", 64, (), POOLINGS[1]).measure([images])
    assert expected.max() ** 3 > np.finfo(np.float16).max
    Gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(embedding, "has_gpu", lambda: True)
    found = Network("bundled", 64, (), POOLINGS[1]).measure([images])
    assert cosines(found, expected).min() > 0.9999


@pytest.mark.slow
def test_what_a_recipe_was_fitted_to_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(12)
    network = Network("bundled", 32)
    features, textures = Network("bundled", 32).outputs(images)
    np.testing.assert_allclose(network.measure([images[2:6], images[6:9]]), features[2:9], 1e-5)
    computed: list[int] = []
    forward = network._forward

    def counted(batch: Any) -> Any:
        computed.append(len(batch))
        return forward(batch)

    monkeypatch.setattr(network, "_forward", counted)
    for _ in range(2):
        order = np.random.default_rng(0).permutation(12)
        found = network.outputs(list(images[order]))
        np.testing.assert_allclose(found[0], features[order], 1e-5)
        np.testing.assert_allclose(found[1], textures[order], 1e-5)
    assert computed == [5, 12]
    assert [len(rows) for rows in network.outputs([])] == [0, 0]


@pytest.mark.long
def test_activation_maxima_are_those_of_keras() -> None:
    images = pictures(40)
    keras = import_keras()
    network = keras.applications.VGG16(
        weights=None, include_top=False, pooling="avg", input_shape=(32, 32, 3)
    )
    network.set_weights(bundled_arrays())
    convolutions = [layer for layer in network.layers if "_conv" in layer.name]
    inputs = keras.Model(network.input, [layer.input for layer in convolutions[1:]])
    expected = [np.max(found) for found in inputs.predict(images[..., ::-1] - MEAN_BGR, verbose=0)]
    found = measure_activation_maxima("bundled", images)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def real_images(cifar10_archive: Path) -> Any:
    source = open_source(str(cifar10_archive), split="test", data_dir=Path())
    images = np.stack(
        [np.asarray(item.content) for item, _ in zip(source.items(), range(1000), strict=False)]
    )
    assert len(images) == 1000
    return images


@pytest.mark.long
@saves_with_keras
def test_a_file_of_keras_weights_can_be_used(embedder: Embedder, tmp_path: Path) -> None:
    path = tmp_path / "mine.weights.h5"
    network = import_keras().applications.VGG16(weights=None, include_top=False)
    network.set_weights(bundled_arrays())
    network.save_weights(path)
    mine = Embedder.load(str(path), 32)
    assert mine.model.weights == "mine.weights.h5"
    assert mine.model.fingerprint == embedder.model.fingerprint
    manifest = Manifest.new(embedder.model, "cosine", "n")
    manifest.require_model(mine.model)  # the same weights under another name


@pytest.mark.parametrize("content", [None, b"", b"not HDF5"])
def test_files_that_hold_no_weights_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "wrong.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"wrong\.h5"):
        Embedder.load(str(path), 32)


@pytest.mark.long
@saves_with_keras
def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    keras = import_keras()
    path = tmp_path / "other.weights.h5"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save_weights(path)
    with pytest.raises(WeightsError, match=r"other\.weights\.h5"):
        Embedder.load(str(path), 32)


def test_another_model_is_refused_with_both_sides_named(embedder: Embedder) -> None:
    other = embedder.model.model_copy(update={"fingerprint": "feed", "weights": "imagenet"})
    with pytest.raises(IndexMismatchError) as caught:
        Manifest.new(other, "cosine", "n").require_model(embedder.model)
    assert "imagenet (feed)" in str(caught.value)
    assert f"bundled ({embedder.model.fingerprint})" in str(caught.value)


def test_imagenet_weights_are_reported_when_they_cannot_be_had() -> None:
    with pytest.raises(WeightsError, match="ImageNet"):
        Embedder.load("imagenet", 32)


def test_auto_is_bundled_and_anything_else_is_itself() -> None:
    choices = ("auto", "bundled", "imagenet", "mine.h5")
    assert [choose_weights(name) for name in choices] == ["bundled", *choices[1:]]


def test_an_index_of_other_bundled_weights_says_how_to_build_it_again(embedder: Embedder) -> None:
    replaced = embedder.model.model_copy(update={"fingerprint": "a6d0036414fcdb84"})
    with pytest.raises(IndexMismatchError, match=r"build it again.*IMAGE_SEARCH_INDEX") as caught:
        Manifest.new(replaced, "cosine", "n").require_model(embedder.model)
    assert "a6d0036414fcdb84" in str(caught.value)
    assert embedder.model.fingerprint in str(caught.value)


@pytest.mark.slow
@needs_original
def test_imagenet_is_the_file_that_keras_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "keras" / "models" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    cached.parent.mkdir(parents=True)
    shutil.copy(ORIGINAL, cached)
    with pytest.raises(WeightsError, match="checksum"):
        Embedder.load("imagenet", 32)
    # The file at hand is a copy with another HDF5 layout, and so another checksum.
    checksum = hashlib.md5(cached.read_bytes()).hexdigest()
    monkeypatch.setattr(weights, "_IMAGENET_MD5", checksum)
    model = Embedder.load("imagenet", 32).model
    assert (model.weights, model.fingerprint) == ("imagenet", "d9a27cc1fc7f975e")
