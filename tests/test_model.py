"""What int8 is fitted to, and what a new index is made for."""

from collections.abc import Iterator

import numpy as np

from image_search.errors import ImageError
from image_search.settings import Settings
from worker.model import activation_sample
from worker.sources import Item, Source


def numbered(count: int, made: list[int]) -> Source:
    """Pictures that are as grey as their numbers; every third cannot be read."""

    def items() -> Iterator[Item]:
        for number in range(count):
            made.append(number)
            grey = np.full((32, 32, 3), number, np.uint8)
            content = ImageError("it has gone") if number % 3 == 0 else grey
            yield Item(str(number), None, content, {})

    return Source("numbered", count, items)


def test_activation_sample_is_of_what_will_be_ingested(settings: Settings) -> None:
    made: list[int] = []
    pixels = activation_sample(numbered(200, made), settings, limit=6)
    assert pixels.shape == (4, 32, 32, 3)
    assert pixels[:, 0, 0, 0].tolist() == [1, 2, 4, 5]
    assert made == [0, 1, 2, 3, 4, 5]
    assert len(activation_sample(numbered(200, []), settings, limit=None)) == 133
