"""The Keras engine on a GPU: images a second, alone and with decoding, and its share of the chip.

usage: python -m benchmarks.gpu [--sizes N …] [--images N] [--batch-size N] [--teraflops N]

It runs with TensorFlow, as our engine does; where that is not installed, VGG16 of Keras runs with
JAX or PyTorch, in bfloat16. Without a GPU, all of it runs on the CPU, which tells that it works.
The share is that of the chip's dense bf16 limit, as its maker gives it.
"""

import argparse
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle, islice
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import Table, timed, weights
from image_search.decoding import Decoder
from image_search.embedding import min_side, to_pixels
from image_search.engines import MEAN_RGB, Forward
from image_search.values import BLOCKS, PLAIN_POOLING, Pixels
from image_search.weights import Convolution, load_weights

SIZES = (32, 64, 160, 224)
IMAGES = 4096
BATCH = 256
ROUNDS = 5
# Of the files that are decoded: a usual photo of the web.
PHOTO = (500, 375)
PHOTOS = 64
# Dense bf16, in 10^12 operations a second, from the makers' data sheets.
TERAFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125}


def operations(size: int) -> int:
    """What VGG16's convolutions multiply and add for an image, as two each."""
    total, channels = 0, 3
    for count, filters in BLOCKS:
        for _ in range(count):
            total += 2 * 9 * channels * filters * size * size
            channels = filters
        size //= 2
    return total


def engine(convolutions: list[Convolution], size: int) -> tuple[str, str, Forward]:
    """The library, the device, and what embeds."""
    if find_spec("tensorflow") is not None:
        from image_search.engines import tensorflow

        forward = tensorflow.compile_forward(convolutions, size, [PLAIN_POOLING])
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return "TensorFlow", details[0].get("device_name", "GPU") if details else "CPU", forward
    for backend in ("jax", "torch"):
        if find_spec(backend) is not None:
            os.environ["KERAS_BACKEND"] = backend
            return _keras(backend, convolutions, size)
    sys.exit("install TensorFlow, JAX or PyTorch: pip install 'image-search[gpu]'")


def _keras(backend: str, convolutions: list[Convolution], size: int) -> tuple[str, str, Forward]:
    import keras

    keras.config.set_dtype_policy("mixed_bfloat16")
    model = keras.applications.VGG16(
        weights=None, include_top=False, pooling="avg", input_shape=(size, size, 3)
    )
    model.set_weights([array for convolution in convolutions for array in convolution])

    def network(pixels: Any) -> Any:
        blue_first = keras.ops.flip(
            keras.ops.cast(pixels, "float32") - np.array(MEAN_RGB, "float32"), 3
        )
        return keras.ops.cast(model(blue_first, training=False), "float32")

    if backend == "jax":
        jax = import_module("jax")
        compiled: Callable[[Any], Any] = jax.jit(network)
        return "JAX", jax.devices()[0].device_kind, lambda pixels: np.asarray(compiled(pixels))
    torch = import_module("torch")
    on = "cuda" if torch.cuda.is_available() else "cpu"

    def forward(pixels: Pixels) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(pixels).to(on)).cpu().numpy()

    return "PyTorch", torch.cuda.get_device_name() if on == "cuda" else "CPU", forward


def photos() -> list[bytes]:
    """JPEG files of noise of two scales."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(PHOTOS):
        small = rng.integers(0, 256, (PHOTO[1] // 25, PHOTO[0] // 25, 3), np.uint8)
        large = np.asarray(Image.fromarray(small).resize(PHOTO), np.int16)
        noisy = np.clip(large + rng.integers(-9, 10, large.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def with_decoding(forward: Forward, size: int, images: int, batch: int) -> float:
    """Seconds for so many files, which threads decode while others are embedded."""
    decoder = Decoder(max_pixels=PHOTO[0] * PHOTO[1], processes=1)

    def pixels(files: list[bytes]) -> Pixels:
        return np.stack(
            [to_pixels(decoder.decode(file, min_side=min_side(size)), size) for file in files]
        )

    files = islice(cycle(photos()), images)
    parts = [list(islice(files, batch)) for _ in range(images // batch)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        started = time.perf_counter()
        for part in pool.map(pixels, parts):
            forward(part)
        seconds = time.perf_counter() - started
    decoder.close()
    return seconds


def repeat(work: Callable[[], object], times: int) -> None:
    """Do it so many times."""
    for _ in range(times):
        work()


def measure(sizes: list[int], images: int, batch: int, teraflops: float | None) -> Table:
    """All sizes."""
    _, convolutions = load_weights(weights())
    rows: list[list[str]] = []
    title = ""
    figures: dict[str, float] = {}
    images = max(images // batch, 1) * batch
    for size in sizes:
        library, device, forward = engine(list(convolutions), size)
        title = f"Keras with {library} on {device}, batches of {batch}"
        pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
        forward(pixels)
        alone = partial(repeat, partial(forward, pixels), images // batch)
        rate = images / statistics.median(timed(alone) for _ in range(ROUNDS))
        end_to_end = images / with_decoding(forward, size, images, batch)
        known = [limit for name, limit in TERAFLOPS.items() if name in device.split()]
        limit = teraflops or (known[0] if known else None)
        share = f"{rate * operations(size) / 1e12 / limit:.0%}" if limit else "not known"
        rows.append([str(size), f"{rate:,.0f}", share, f"{end_to_end:,.0f}"])
        figures |= {f"images/s @ {size}": rate, f"with decoding @ {size}": end_to_end}
    header = ["input size", "images/s", "of the chip's bf16 limit", "with decoding, images/s"]
    return Table(title, header, rows, [], figures)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N", help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=BATCH, metavar="N", help="(%(default)s)")
    parser.add_argument("--teraflops", type=float, metavar="N", help="the chip's dense bf16 limit")
    chosen = parser.parse_args()
    print(measure(list(chosen.sizes), chosen.images, chosen.batch_size, chosen.teraflops))


if __name__ == "__main__":
    main()
