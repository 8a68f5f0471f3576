"""Several workers, each of which ingests its part of a source."""

import signal
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from image_search.calibration import Calibration
from image_search.errors import SettingsError
from image_search.provenance import KnownSource
from image_search.sample import TEXTURES, ImageSample, bound_to_mend, rank
from image_search.settings import Settings, load_settings
from image_search.stores import open_index
from tests.support.images import drawn, folder_of, png
from tests.support.indexes import FakeEmbedder, assert_same_records, count, fill, source_of
from tests.support.processes import run, start
from tests.support.sources import opened
from tests.support.waiting import wait_until
from worker.ingest import ingest
from worker.listing import list_sources
from worker.origin import named_in
from worker.shards import Attempt, Changes, Shard, follows_a_kill
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
def test_the_last_one_to_end_does_what_is_done_once(settings: Settings, tmp_path: Path) -> None:
    folder = str(folder_of(tmp_path / "pics", IMAGES))
    code, _, err = run("worker", "ingest", folder, "--index", "one")
    assert code == 0, err
    one = open_index(load_settings(index="one"))

    def shard(number: int) -> str:
        code, out, err = run("worker", "ingest", folder, "--shard", f"{number}/2")
        assert code == 0, err
        return out

    # What the model is fitted to is embedded once, whoever it belongs to.
    out = shard(0)
    assert f"{IMAGES} images embedded, 0 unchanged" in out
    assert "shard 0 of 2 is finished: the last of them to finish fits confidences" in out
    assert open_index(settings).calibration is None
    out = shard(1)
    assert " 0 images embedded, " in out
    assert "the last of them" not in out
    index = open_index(settings)
    assert set(index.load_sample().ids) == set(one.load_sample().ids)
    assert index.calibration is not None
    assert one.calibration is not None
    np.testing.assert_allclose(index.calibration.scores, one.calibration.scores, atol=1e-3)
    assert [one.name for one in list_sources(index)] == ["pics"]

    # Without anything new, nothing is fitted again.
    index.save_calibration(Calibration(scores=(0.5,), confidences=(0.5,)))
    shard(1)
    assert open_index(settings).calibration == index.calibration


@pytest.mark.long
def test_a_plain_ingest_mends_what_a_killed_shard_has_left(
    settings: Settings, tmp_path: Path
) -> None:
    folder = str(folder_of(tmp_path / "pics", IMAGES))
    worker = start("worker", "ingest", folder, "--shard", "0/2")
    wait_until(lambda: count(settings) > 0)
    worker.kill()
    worker.communicate()
    lost = count(settings) > 0
    code, _, err = run("worker", "ingest", folder, "--shard", "1/2")
    assert code == 0, err
    index = open_index(settings)
    assert lost
    assert index.calibration is None
    code, _, err = run("worker", "ingest", folder)
    assert code == 0, err
    index = open_index(settings)
    assert index.calibration is not None
    sample = index.load_sample()
    assert (index.count(), len(sample.ids)) == (IMAGES, IMAGES)
    assert sample.is_representative
    # It is settled now.
    index.save_calibration(Calibration(scores=(0.5,), confidences=(0.5,)))
    code, out, err = run("worker", "ingest", folder)
    assert " 0 images embedded, " in out, err
    assert open_index(settings).calibration == index.calibration


def test_attempts_know_of_each_other(settings: Settings) -> None:
    index = fill(settings, FakeEmbedder())
    source = source_of(drawn, 48)

    def attempt(number: int, shards: int = 2) -> Attempt:
        return Attempt(index, source, Shard(number, shards))

    first, second = attempt(0), attempt(1)
    assert not first.follows_a_kill
    assert not second.follows_a_kill
    assert not first.end(index, has_written=True)
    assert second.end(index, has_written=True)
    changes = Changes.of(index, source)
    assert not changes.are_settled
    changes.settle(index, source)
    assert Changes.of(index, source).are_settled

    # One that is started again is the last one again.
    again = attempt(0)
    assert again.end(index, has_written=False)
    assert Changes.of(index, source).are_settled
    again = attempt(0)
    assert again.end(index, has_written=True)
    changes = Changes.of(index, source)
    assert not changes.are_settled
    changes.settle(index, source)

    # It is killed; a plain ingest, the same shard and any of another number know of that.
    attempt(1)
    assert not Changes.of(index, source).are_settled
    assert follows_a_kill(index, source)
    assert not attempt(0).follows_a_kill
    assert attempt(1).follows_a_kill
    assert attempt(2, 3).follows_a_kill


def test_what_shards_keep_in_the_index_is_no_source(settings: Settings, tmp_path: Path) -> None:
    index = fill(settings, FakeEmbedder())
    source = opened(folder_of(tmp_path / "pics", 3))
    assert source.origin is not None
    known = KnownSource(place=source.origin.place)
    # In this order, as a store may list them so.
    index.save_source("pics~1/0/2", known.model_copy(update={"shard": "0/2"}))
    index.save_source("pics~1", known)
    named = named_in(index, source)
    assert named.origin is not None
    assert named.origin.name == "pics~1"
    assert [one.name for one in list_sources(index)] == ["pics~1", None]


def test_what_the_sample_lacks_after_a_kill_is_embedded_again(settings: Settings) -> None:
    embedder = FakeEmbedder()
    index = fill(settings, embedder)  # without its sample, as if killed then
    source = source_of(drawn, 48)
    assert ingest(source, index, embedder, settings).embedded == 0
    # So few are not enough to tell anything, and all are taken.
    summary = ingest(source, index, embedder, settings, mend=True)
    assert (summary.embedded, summary.unchanged) == (48, 0)
    assert set(summary.sample.ids) == {item.id for item in drawn()}


@pytest.mark.parametrize(("held", "expected"), [(0, 0.5), (1000, 0.5), (1900, 0.0)])
def test_of_a_large_index_only_the_lowest_ranks_are_embedded_again(
    held: int, expected: float
) -> None:
    ids = sorted((str(n) for n in range(4000)), key=rank)[:held]
    sample = ImageSample().joined(ids, np.zeros((held, TEXTURES), np.float32))
    bound = rank(ids[-1]) if held else 1.0
    sample = replace(sample, bound=0.5 if held == 1000 else bound)
    assert bound_to_mend(sample, 4000) == expected
    assert bound_to_mend(sample, 0) == 0


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

    def fresh(
        are_known: Callable[[list[Item]], list[bool]], positions: Collection[int] | None
    ) -> Iterator[Item]:
        part = [all_items[n] for n in sorted(positions or range(10))]
        yield from (item for item, old in zip(part, are_known(part), strict=True) if not old)

    asked: list[str] = []

    def are_known(items: list[Item]) -> list[bool]:
        asked.extend(item.id for item in items)
        return [item.id == "4" for item in items]

    source = Source("s", 10, lambda: iter(all_items), fresh=fresh)
    shard = source.shard(1, 3)
    assert shard.fresh is not None
    assert [item.id for item in shard.fresh(are_known, None)] == ["1", "7"]
    assert asked == ["1", "4", "7"]
    assert [item.id for item in shard.fresh(are_known, [2])] == ["7"]
