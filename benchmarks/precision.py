"""precision@k of held-out CIFAR-10 test images, searched in the index that the settings name.

usage: python -m benchmarks.precision [SOURCE] [--queries N]

SOURCE is cifar10 or its archive; the first N test images are the queries.
"""

import argparse
import itertools
from collections import defaultdict

import numpy as np
from PIL import Image

from image_search.embedding import Embedder
from image_search.settings import load_settings
from image_search.stores import open_index
from worker.sources import open_source

CUTOFFS = (1, 10, 100)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", default="cifar10", metavar="SOURCE")
    parser.add_argument("--queries", type=int, default=1000, metavar="N")
    arguments = parser.parse_args()
    settings = load_settings()
    index = open_index(settings)
    model = index.manifest.model
    embedder = Embedder(model.weights, model.input_size, index.manifest.activation_maxima)
    index.manifest.require_model(embedder.model)
    source = open_source(arguments.source, split="test", data_dir=settings.data_dir)

    hits: dict[str | None, list[list[float]]] = defaultdict(list)
    for item in itertools.islice(source.items(), arguments.queries):
        pixels = embedder.pixels(Image.fromarray(np.asarray(item.content)))
        matches = index.query(embedder.embed([pixels])[0], max(CUTOFFS))
        relevant = [match.label == item.label for match in matches]
        hits[item.label].append([float(np.mean(relevant[:cutoff])) for cutoff in CUTOFFS])

    print(f"{index.count():,} images, {index.manifest.metric}, {model}")
    print(f"{'class':12}{'queries':>8}" + "".join(f"{f'P@{cutoff}':>8}" for cutoff in CUTOFFS))
    total = [precisions for label in hits for precisions in hits[label]]
    for name, rows in [*sorted((str(label), hits[label]) for label in hits), ("all", total)]:
        means = "".join(f"{mean:8.3f}" for mean in np.mean(rows, axis=0))
        print(f"{name:12}{len(rows):8}{means}")


if __name__ == "__main__":
    main()
