"""Near-duplicates: which of a list are kept."""

import numpy as np

from image_search.duplicates import NEAR_DUPLICATE_COSINE, distinct
from image_search.values import DIMENSION


def test_what_is_near_one_that_was_left_out_may_be_kept() -> None:
    # Each is near its neighbours alone: cos 12 degrees is enough, cos 24 degrees is not.
    angles = np.radians([0, 12, 24, 36, 90, 90])
    rows = np.zeros((len(angles), DIMENSION), np.float32)
    rows[:, 0], rows[:, 1] = np.cos(angles), np.sin(angles)
    rows *= np.arange(1, 7, dtype=np.float32)[:, np.newaxis]  # lengths don't matter
    assert np.cos(np.radians(12)) > NEAR_DUPLICATE_COSINE["none"] > np.cos(np.radians(24))
    assert distinct(rows, "none").tolist() == [True, False, True, False, True, False]
