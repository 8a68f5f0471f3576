"""Two services and a worker on one folder, with kills: the short form of `benchmarks.soak`."""

from pathlib import Path

import pytest

from benchmarks.soak import soak


@pytest.mark.long
def test_answers_are_those_of_an_exact_search_whatever_befalls_the_index(tmp_path: Path) -> None:
    found = soak("sample", 200, 25, tmp_path)
    assert found.wrong == []
    assert set(found.recalls) == {1.0}, "all of so few images are compared"
    seen = {name for name, count in found.counts.items() if count}
    assert seen >= {"searches", "upserted", "deleted", "ingested"}
