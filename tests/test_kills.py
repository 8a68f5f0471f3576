"""Workers on several machines, killed at random: the short form of `benchmarks.kills`.

KILLS_IMAGES and KILLS are how many images there are, and how often each kind is killed.
"""

import os
from pathlib import Path

import pytest

from benchmarks.kills import kill_all

pytestmark = pytest.mark.long

IMAGES = int(os.environ.get("KILLS_IMAGES", "1500"))
KILLS = int(os.environ.get("KILLS", "1"))


@pytest.mark.parametrize("kinds", [["shard"], ["driver", "actor", "node"]], ids="-".join)
def test_whatever_is_killed_each_image_is_there_once(
    kinds: list[str], cifar10_archive: Path, tmp_path: Path
) -> None:
    if kinds != ["shard"]:
        pytest.importorskip("ray", reason="Ray is not installed")
    found = kill_all(str(cifar10_archive), IMAGES, kinds, KILLS, tmp_path, between=4, recipe="none")
    assert found.wrong == []
    for kind in kinds:
        assert found.counts[f"{kind}: killed"] >= KILLS
