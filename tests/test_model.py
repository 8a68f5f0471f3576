"""What int8 is fitted to, and what a new index is made for."""

from collections.abc import Iterator

import numpy as np
import pytest

from image_search.errors import ImageError
from image_search.settings import Settings, load_settings
from worker.model import choose_input_size, draw_images
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


def test_what_int8_is_fitted_to_is_drawn_of_what_will_be_ingested(settings: Settings) -> None:
    source = numbered(200, []).limited(6)
    drawn = {int(item.id) for item in source.items()}
    images = draw_images(source, settings)
    greys = [np.asarray(image)[0, 0, 0] for image in images]
    assert sorted(greys) == sorted(number for number in drawn if number % 3)
    greys = [np.asarray(image)[0, 0, 0] for image in draw_images(numbered(200, []), settings)]
    assert 50 < len(set(greys)) == len(greys) < 80
    # Also the first of them are of the whole source.
    assert min(greys[:20]) < 40 < 160 < max(greys[:20])


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
    found, reason = choose_input_size(
        draw_images(sized(small, large).limited(limit), settings), settings
    )
    assert found == size
    assert median in reason


def test_a_set_input_size_is_kept() -> None:
    settings = load_settings(input_size=64)
    for images in ([], draw_images(numbered(10, []), settings)):
        assert choose_input_size(images, settings) == (64, "as set")
