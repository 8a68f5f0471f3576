"""Images a second and exactness of our engines beside the same weights in other libraries.

usage: python -m benchmarks.engines SOURCE [--images N]

IMAGE_SEARCH_INPUT_SIZE=160 measures the size of photos; without it, that of small images, 96.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from benchmarks import peers
from benchmarks.measure import (
    INPUT_SIZE,
    Default,
    Table,
    embed_all,
    in_turns,
    load_images,
    medians,
    normalised,
    run,
    weights,
)
from image_search.embedding import Embedder
from image_search.engines import Forward
from image_search.values import Embeddings, Pixels
from image_search.weights import load_weights

TITLE = "VGG16: images a second"
DEFAULT = "ours, int8 and whitened (default)"
INT8 = "ours, int8"
FLOAT32 = "ours, float32"
PREDICT = "model.predict"

CALLS = {1: 10, 8: 4, 32: 2}  # timed in a turn, by batch size
ROUNDS = 5
FITTED_TO = 256  # images that the default is fitted to
ASKED = {1: 1.0, 8: 1.0, 32: 2.5}  # times the best float32 peer
ASKED_OF_PREDICT = 15
ASKED_COSINE = 0.9999
COMPARED_IMAGES = 1000


def measure(source: str, images: int) -> list[Table]:
    """Speed, and agreement on at most `images` images."""
    pixels, _ = load_images(source, "train", FITTED_TO)
    default = Default.of(pixels)
    float32 = Embedder.load(weights(), INPUT_SIZE).embed
    plain_int8 = Embedder.load(weights(), INPUT_SIZE, default.activation_maxima).embed
    _, convolutions = load_weights(weights())
    others = peers.float32_peers(convolutions)
    predict = peers.keras_predict(convolutions)
    compared, _ = load_images(source, "test", min(images, COMPARED_IMAGES))
    return [
        speed(pixels, {DEFAULT: default.embedder.embed, FLOAT32: float32}, others, predict),
        agreement(compared, {INT8: plain_int8, FLOAT32: float32, **others}),
    ]


def bare_onnx_runtime_process() -> tuple[float, float]:
    """Seconds until a process with a bare ONNX Runtime has embedded an image, and its MiB."""
    _, convolutions = load_weights(weights())
    return peers.onnx_runtime_process(convolutions)


def speed(
    pixels: Pixels,
    ours: Mapping[str, Callable[[Pixels], Embeddings]],
    others: Mapping[str, Forward],
    predict: Forward,
) -> Table:
    """Images a second of every engine at every batch size."""
    names = [*ours, *others, PREDICT]
    rows, notes, figures = [], [], {}
    for batch, calls in CALLS.items():
        engines = {**ours, **others, **({PREDICT: predict} if batch == 1 else {})}
        work = {name: partial(engine, pixels[:batch]) for name, engine in engines.items()}
        seconds = in_turns(work, ROUNDS, calls)
        rates = {name: batch / median for name, median in medians(seconds).items()}
        peaks = {name: batch / min(times) for name, times in seconds.items()}
        best = max(others, key=lambda name: rates[name])
        ratio = rates[DEFAULT] / rates[best]
        peak_ratio = peaks[DEFAULT] / max(peaks[name] for name in others)
        rows.append(
            [str(batch)]
            + [f"{rates[name]:,.0f}" if name in rates else "" for name in names]
            + [f"{ratio:.2f}", f"{peak_ratio:.2f}"]
        )
        notes.append(
            f"batch {batch}: the default is {ratio:.2f} times as fast as the best float32 peer, "
            f"{best} (at least {ASKED[batch]:g}); at their fastest {peak_ratio:.2f} times"
        )
        if batch == 1:
            times_predict = rates[DEFAULT] / rates[PREDICT]
            notes.append(
                f"batch 1: {times_predict:.1f} times as fast as {PREDICT} "
                f"(at least {ASKED_OF_PREDICT})"
            )
            figures[f"default / {PREDICT}, batch 1"] = times_predict
        figures |= {f"{name} @ {batch}": rate for name, rate in rates.items()}
        figures[f"default / best float32 peer, batch {batch}"] = ratio
        figures[f"default / best float32 peer, batch {batch}, peaks"] = peak_ratio
    header = ["batch", *names, "default / best peer", "at their fastest"]
    return Table(TITLE, header, rows, notes, figures)


def agreement(pixels: Pixels, engines: Mapping[str, Callable[[Pixels], Embeddings]]) -> Table:
    """Cosines of each engine's plain embeddings to those of ours in float32."""
    embeddings = {name: normalised(embed_all(engine, pixels)) for name, engine in engines.items()}
    rows, figures = [], {}
    for name in engines:
        if name == FLOAT32:
            continue
        cosines = (embeddings[name] * embeddings[FLOAT32]).sum(axis=1, dtype=np.float64)
        asked = "" if name == INT8 else f"at least {ASKED_COSINE}"
        rows.append([name, f"{cosines.min():.6f}", f"{cosines.mean():.6f}", asked])
        figures[f"{name}, least"] = float(cosines.min())
        figures[f"{name}, mean"] = float(cosines.mean())
    title = f"Cosine to ours in float32, {len(pixels):,} images"
    return Table(title, ["engine", "least", "mean", "asked"], rows, [], figures)


if __name__ == "__main__":
    run(measure, __doc__)
