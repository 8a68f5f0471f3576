"""Several workers, each of which ingests its part of a source."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from image_search.errors import SettingsError
from image_search.settings import Settings, load_settings
from image_search.stores import open_index
from tests.support.images import folder_of, png
from tests.support.indexes import assert_same_records, count
from tests.support.processes import run, start
from tests.support.sources import opened
from tests.support.waiting import wait_until
from worker.shards import Shard
from worker.sources.source import Item, Source

IMAGES = 120


@pytest.mark.long
def test_three_workers_make_the_index_that_one_makes(settings: Settings, tmp_path: Path) -> None:
    folder = str(folder_of(tmp_path / "pics", IMAGES))
    code, _, err = run("worker", "ingest", folder, "--index", "one")
    assert code == 0, err

    # The one that the others wait for starts last.
    workers = [start("worker", "ingest", folder, "--shard", f"{n}/3") for n in (2, 1)]
    assert workers[0].stdout is not None
    lines = iter(workers[0].stdout.readline, "")
    assert next(lines) == "waiting for shard 0 of 3, which creates the index\n"
    workers.append(start("worker", "ingest", folder, "--shard", "0/3"))
    wait_until(lambda: count(settings) > 0)
    workers[1].kill()  # once it has begun, or before
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert worker.returncode == (-signal.SIGKILL if worker is workers[1] else 0), err
        assert "Traceback" not in err
    code, out, err = run("worker", "ingest", folder, "--shard", "1/3")
    assert code == 0, err
    assert "shard 1 of 3: " in out

    one, several = open_index(load_settings(index="one")), open_index(settings)
    assert several.manifest.model == one.manifest.model
    assert_same_records(one, several)
    assert set(several.load_sample().ids) == set(one.load_sample().ids)
    assert several.calibration is not None
    assert one.calibration is not None
    np.testing.assert_allclose(several.calibration.scores, one.calibration.scores, atol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize(
    "variables", [("SLURM_PROCID", "SLURM_NTASKS"), ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS")]
)
def test_schedulers_number_the_workers(
    settings: Settings, tmp_path: Path, variables: tuple[str, str]
) -> None:
    folder = str(folder_of(tmp_path / "pics", 12))
    number, of = variables
    for n in range(2):
        code, out, err = run("worker", "ingest", folder, **{number: str(n), of: "2"})
        assert code == 0, err
        assert f"shard {n} of 2, as {number} and {of} say: " in out
    assert count(settings) == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "2/2"], "2/2 is no shard: they are 0/2 to 1/2"),
        (["--shard", "1"], "'1' is not I/N, such as 0/4"),
        (["--shard", "0/2", "--prune"], "--prune needs the whole source"),
    ],
)
def test_what_is_no_shard_is_told(tmp_path: Path, arguments: list[str], message: str) -> None:
    folder = folder_of(tmp_path / "pics", 3)
    code, _, err = run("worker", "ingest", str(folder), *arguments)
    assert (code, message in err) == (2, True), err


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"SLURM_PROCID": "0"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, (3, 4)),
        ({"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "5"}, (2, 5)),
        ({"JOB_COMPLETION_INDEX": "2"}, None),
    ],
)
def test_the_environment_chooses(environ: dict[str, str], expected: tuple[int, int] | None) -> None:
    shard = Shard.of_environment(environ)
    assert (shard and (shard.number, shard.count)) == expected


def test_an_environment_that_makes_no_sense_is_told() -> None:
    with pytest.raises(SettingsError, match=r"SLURM_PROCID and SLURM_NTASKS: 4/4 is no shard"):
        Shard.of_environment({"SLURM_PROCID": "4", "SLURM_NTASKS": "4"})


def test_shards_of_files_do_not_depend_on_other_files(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pics", 40)

    def dealt() -> dict[str, int]:
        source = opened(folder)
        return {item.id: n for n in range(3) for item in source.shard(n, 3).items()}

    before = dealt()
    (folder / "label0" / "0000.png").unlink()
    (folder / "label0" / "another.png").write_bytes(png(99))
    after = dealt()
    assert {id_: after[id_] for id_ in before.keys() & after.keys()} == {
        id_: n for id_, n in before.items() if id_ in after
    }
    assert len(before.keys() & after.keys()) == 39


def test_a_shard_asks_only_for_its_own_whether_they_are_known() -> None:
    all_items = [Item(str(n), None, b"", {}) for n in range(10)]

    def fresh(are_known: Callable[[list[Item]], list[bool]]) -> Iterator[Item]:
        for first in range(0, 10, 4):
            part = all_items[first : first + 4]
            known = are_known(part)
            yield from (item for item, old in zip(part, known, strict=True) if not old)

    asked: list[str] = []

    def are_known(items: list[Item]) -> list[bool]:
        asked.extend(item.id for item in items)
        return [item.id == "4" for item in items]

    source = Source("s", 10, lambda: iter(all_items), fresh=fresh)
    shard = source.shard(1, 3)
    assert shard.fresh is not None
    assert [item.id for item in shard.fresh(are_known)] == ["1", "7"]
    assert asked == ["1", "4", "7"]
