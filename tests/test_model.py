"""What int8 is fitted to, and what a new index is made for."""

from collections.abc import Iterator

import numpy as np
import pytest

from image_search.errors import ImageError
from image_search.settings import Settings, load_settings
from worker.model import activation_sample, choose_input_size
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
    source = numbered(200, made).limited(6)
    drawn = [int(item.id) for item in source.items()]
    made.clear()
    pixels = activation_sample(source, 32, settings)
    assert pixels[:, 0, 0, 0].tolist() == [number for number in drawn if number % 3]
    assert made == list(range(drawn[-1] + 1))
    assert len(activation_sample(numbered(200, []), 32, settings)) == 133


def sized(small: int, large: int) -> Source:
    """Small images, then large ones, of any width; one is damaged."""

    def items() -> Iterator[Item]:
        yield Item("damaged", None, ImageError("it has gone"), {})
        for number in range(small + large):
            side = 32 if number < small else 200
            yield Item(str(number), None, np.zeros((side, 300, 3), np.uint8), {})

    return Source("sized", small + large + 1, items)


@pytest.mark.parametrize(
    ("small", "large", "limit", "size", "median"),
    [(50, 0, None, 96, "32"), (0, 50, None, 160, "200"), (50, 350, None, 160, "200"),
     (50, 350, 40, 160, "200"), (0, 0, None, 160, "no image")],
)  # fmt: skip
def test_the_usual_size_of_images_decides_the_input_size(
    small: int, large: int, limit: int | None, size: int, median: str
) -> None:
    settings = load_settings(input_size="auto")
    found, reason = choose_input_size(sized(small, large).limited(limit), settings)
    assert found == size
    assert median in reason


def test_a_set_input_size_is_kept_without_looking_at_an_image() -> None:
    made: list[int] = []
    found, reason = choose_input_size(numbered(10, made), load_settings(input_size=64))
    assert (found, reason, made) == (64, "as set", [])
