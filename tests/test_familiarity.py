"""Familiarity: a sample of all that was ingested, and what is unlike all of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from image_search.familiarity import UNFAMILIAR_BELOW, Familiarity
from image_search.sample import TEXTURES, ImageSample

IDS = [f"image {number}" for number in range(9000)]


def textures(count: int, seed: int) -> Any:
    """Positive, and of few directions, as those of pictures are."""
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(0).standard_normal((30, TEXTURES))
    return np.exp(rng.standard_normal((count, 30)) @ basis / 5).astype(np.float32)


def sample_of(rows: Any, ids: Sequence[str] = IDS) -> ImageSample:
    return ImageSample().joined(ids[: len(rows)], rows)


# --- the sample -----------------------------------------------------------------------------------


def test_a_small_sample_holds_everything() -> None:
    rows = textures(500, 1)
    sample = sample_of(rows)
    assert set(sample.ids) == set(IDS[:500])
    for id_, row in zip(sample.ids, sample.textures, strict=True):
        np.testing.assert_array_equal(row, rows[IDS.index(id_)])


def test_a_sample_is_the_same_however_images_came() -> None:
    rows = textures(9000, 1)
    at_once = sample_of(rows)
    assert len(at_once.ids) == 2000
    order = np.random.default_rng(3).permutation(9000)
    batches = [order[start : start + 700] for start in range(0, 9000, 700)]
    one_by_one = ImageSample()
    halves = [ImageSample(), ImageSample()]
    for number, batch in enumerate(batches):
        ids = [IDS[place] for place in batch]
        one_by_one = one_by_one.joined(ids, rows[batch])
        halves[number % 2] = halves[number % 2].joined(ids, rows[batch])
    first, second = halves
    joined = first.joined(second.ids, second.textures, second.bound)
    for sample in (one_by_one, joined):
        assert sample.fingerprint == at_once.fingerprint
    # A fifth of them from each fifth, but for chance.
    shares = np.histogram([IDS.index(id_) for id_ in at_once.ids], bins=5, range=(0, 9000))[0]
    assert shares.min() > 330
    assert shares.max() < 470


def test_a_newer_image_takes_the_place_of_the_older() -> None:
    rows = textures(50, 1)
    sample = sample_of(rows).joined([IDS[7]], rows[:1])
    assert len(sample.ids) == 50
    np.testing.assert_array_equal(sample.textures[sample.ids.index(IDS[7])], rows[0])


def test_a_sample_stands_for_an_index_that_it_was_drawn_from() -> None:
    sample = sample_of(textures(9000, 1))
    everything = set(sample.ids)
    assert sample.of_index(everything, 9000).is_representative
    # Deleted images leave it, and it stands for the rest.
    half = set(sorted(everything)[:1000])
    assert sample.of_index(half, 4500).is_representative
    # Images that it has not seen: those of an older version, or written over HTTP.
    assert not sample.of_index(everything, 15_000).is_representative
    assert not sample_of(textures(99, 1)).of_index(set(IDS), 99).is_representative
    assert sample_of(textures(100, 1)).of_index(set(IDS), 100).is_representative


def test_a_sample_survives_as_bytes() -> None:
    sample = sample_of(textures(300, 1)).of_index(set(IDS), 300)
    again = ImageSample.from_bytes(sample.to_bytes())
    assert again.fingerprint == sample.fingerprint
    assert again.indexed == 300
    with pytest.raises(ValueError, match="not a sample"):
        ImageSample.from_bytes(b"nothing")


# --- familiarity ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 1000, 2000])
def test_p_values_of_held_out_images_are_uniform(size: int) -> None:
    p_values = Familiarity(sample_of(textures(size, 1))).p_values(textures(3000, 2))
    assert p_values.min() > 0
    assert p_values.max() <= 1
    # Three standard errors of a quantile of half of the sample.
    tolerance = 3 * 0.5 / np.sqrt(size / 2)
    for level in (0.1, 0.5, 0.9):
        assert (p_values <= level).mean() == pytest.approx(level, abs=tolerance)


def test_what_is_unlike_all_images_is_unfamiliar() -> None:
    rows = textures(1000, 1)
    familiarity = Familiarity(sample_of(rows))
    shuffled = np.random.default_rng(4).permuted(rows[:100], axis=1)
    unlike = [np.zeros((1, TEXTURES), np.float32), shuffled, 10 * rows[:100], rows[:100] / 10]
    assert (familiarity.p_values(np.concatenate(unlike)) < UNFAMILIAR_BELOW).all()
    assert (familiarity.p_values(rows) >= UNFAMILIAR_BELOW).mean() > 0.95


def test_a_small_group_of_other_images_is_familiar() -> None:
    few = np.random.default_rng(4).permuted(textures(1, 5), axis=1)
    noise = np.random.default_rng(6).normal(0, 0.02, (20, TEXTURES))
    group = (few * np.exp(noise)).astype(np.float32)
    rows = np.concatenate([textures(1500, 1), group[:10]])
    with_group = Familiarity(sample_of(rows)).p_values(group[10:])
    without = Familiarity(sample_of(rows[:1500])).p_values(group[10:])
    assert (without < UNFAMILIAR_BELOW).all()
    assert (with_group >= UNFAMILIAR_BELOW).all()


def test_images_that_are_all_the_same_are_no_trouble() -> None:
    rows = np.repeat(textures(1, 1), 200, axis=0)
    familiarity = Familiarity(sample_of(rows))
    assert familiarity.p_values(rows[:1])[0] == 1
    assert familiarity.p_values(2 * rows[:1])[0] < UNFAMILIAR_BELOW
