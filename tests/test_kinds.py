"""Each kind of source, ingested again after changes, and killed in between.

The index is then what one run gives.
"""

import csv
import http.server
import io
import json
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from image_search.settings import load_settings
from image_search.stores import open_index
from image_search.values import Pixels
from tests.support import ROOT
from tests.support.images import png
from tests.support.indexes import assert_same_records
from tests.support.servers import Quiet
from tests.support.sources import opened
from tests.support.syncing import sync
from tests.support.videos import scene, write_video

# Names below a label's folder, and the seeds of the pictures.
State = dict[str, int]


def folder(state: State, path: Path) -> str:
    path = path / "pics"
    shutil.rmtree(path, ignore_errors=True)
    for name, seed in state.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(png(seed))
    return str(path)


def zipped(state: State, path: Path) -> str:
    with zipfile.ZipFile(path / "pics.zip", "w") as archive:
        for name, seed in state.items():
            archive.writestr(name, png(seed))
    return str(path / "pics.zip")


def tarred(state: State, path: Path) -> str:
    with tarfile.open(path / "pics.tar.gz", "w:gz") as archive:
        for name, seed in state.items():
            _add(archive, name, png(seed))
    return str(path / "pics.tar.gz")


def webdataset(state: State, path: Path) -> str:
    with tarfile.open(path / "pics-0000.tar", "w") as archive:
        for name, seed in state.items():
            label, _, file = name.partition("/")
            _add(archive, file, png(seed))
            _add(archive, file.replace(".png", ".cls"), label.encode())
    return str(path / "pics-0000.tar")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def table(state: State, path: Path) -> str:
    folder(state, path)
    with (path / "shop.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "price"])
        writer.writerows(
            [f"pics/{name}", name.partition("/")[0], seed] for name, seed in state.items()
        )
    return str(path / "shop.csv")


def json_lines(state: State, path: Path) -> str:
    folder(state, path)
    rows = [{"path": f"pics/{name}", "price": seed} for name, seed in state.items()]
    (path / "shop.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(path / "shop.jsonl")


def listed(state: State, path: Path) -> str:
    folder(state, path)
    (path / "list.txt").write_text("\n".join(f"pics/{name}" for name in state))
    return str(path / "list.txt")


def parquet(state: State, path: Path) -> str:
    labels = [name.partition("/")[0] for name in state]
    images = [{"bytes": png(seed), "path": name} for name, seed in state.items()]
    pq.write_table(pa.table({"image": images, "label": labels}), path / "train.parquet")
    return str(path / "train.parquet")


def parquet_folder(state: State, path: Path) -> str:
    data = path / "beans" / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    names = list(state)
    for number in range(2):
        part = {name: state[name] for name in names[number::2]}
        parquet(part, path)
        (path / "train.parquet").rename(data / f"train-0000{number}-of-00002.parquet")
    return str(path / "beans")


def webdataset_folder(state: State, path: Path) -> str:
    (path / "pets").mkdir(exist_ok=True)
    names = list(state)
    for number in range(2):
        webdataset({name: state[name] for name in names[number::2]}, path)
        (path / "pics-0000.tar").rename(path / "pets" / f"train-000{number}.tar")
    return str(path / "pets")


def one_file(state: State, path: Path) -> str:
    """A picture that changes."""
    (path / "pics").mkdir(exist_ok=True)
    (path / "pics" / "one.png").write_bytes(png(sum(state.values())))
    return str(path / "pics" / "one.png")


def films(state: State, path: Path) -> str:
    """A folder of pictures and videos."""
    folder(state, path)
    for name, seed in list(state.items())[::2]:
        file = path / "pics" / name
        file.unlink()
        scenes = [scene(seed), scene(seed + 1)]
        write_video(file.with_suffix(".mp4"), scenes, codec="mpeg4", rate=1)
    return str(path / "pics")


def _cifar10(state: State) -> tuple[list[str], list[tuple[list[int], Pixels]]]:
    """Names of classes; labels, and planes, uint8 [n, 3072], of each batch."""
    classes = sorted({name.partition("/")[0] for name in state})
    names = list(state)
    batches = []
    for number in range(5):
        part = names[number::5]
        planes = [np.random.default_rng(state[n]).integers(0, 256, 3072, np.uint8) for n in part]
        batches.append(([classes.index(n.partition("/")[0]) for n in part], np.array(planes)))
    return classes, batches


def cifar10(state: State, path: Path) -> str:
    classes, batches = _cifar10(state)
    with tarfile.open(path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        _add(archive, "cifar-10-batches-bin/batches.meta.txt", "\n".join(classes).encode())
        for number, (labels, planes) in enumerate(batches, 1):
            records = np.hstack([np.array(labels, np.uint8)[:, None], planes])
            _add(archive, f"cifar-10-batches-bin/data_batch_{number}.bin", records.tobytes())
    return str(path / "cifar-10-binary.tar.gz")


def cifar10_python(state: State, path: Path) -> str:
    classes, batches = _cifar10(state)
    data = path / "cifar-10-batches-py"
    data.mkdir(exist_ok=True)
    (data / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}, 2))
    for number, (labels, planes) in enumerate(batches, 1):
        content = pickle.dumps({b"labels": labels, b"data": planes}, 2)
        (data / f"data_batch_{number}").write_bytes(content)
    return str(path)


KINDS: Final[list[Callable[[State, Path], str]]] = [
    *(folder, zipped, tarred, webdataset, table, json_lines, listed, parquet),
    *(parquet_folder, webdataset_folder, one_file, films, cifar10, cifar10_python),
]


def changed(state: State, rng: random.Random) -> State:
    """Some removed, some renamed, some with another picture, and some new."""
    names = list(state)
    rng.shuffle(names)
    after = {name: state[name] for name in names[3:]}
    after |= {
        f"{name.partition('/')[0]}/renamed-{number}.png": state[name]
        for number, name in enumerate(names[1:3])
    }
    after[names[4]] = 1000 + rng.randrange(100)
    after |= {
        f"label{number % 3}/new-{number}.png": 2000 + rng.randrange(100) for number in range(3)
    }
    return dict(sorted(after.items()))


def dies(source: str, calls: int) -> bool:
    code = subprocess.run(
        [sys.executable, "-m", "tests.support.syncing", source, str(calls)], cwd=ROOT, check=False
    ).returncode
    assert code in {0, 9}
    return code == 9


def check(make: Callable[[State], str], seed: int) -> None:
    rng = random.Random(seed)
    state = {f"label{number % 3}/{number:02d}.png": number for number in range(12)}
    source = make(state)
    assert dies(source, rng.randint(1, 3))
    sync(source, load_settings())
    source = make(changed(state, rng))
    dies(source, rng.randint(1, 3))
    sync(source, load_settings())
    sync(source, load_settings(index="once"))
    with open_index(load_settings()) as index, open_index(load_settings(index="once")) as once:
        assert index.count() == once.count() > 0
        assert_same_records(index, once)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_index_is_what_one_run_gives(
    kind: Callable[[State, Path], str], tmp_path: Path
) -> None:
    check(lambda state: kind(state, tmp_path), seed=len(kind.__name__))


@pytest.mark.long
@pytest.mark.parametrize("kind", [zipped, listed, table], ids=lambda kind: kind.__name__)
def test_the_index_is_what_one_run_gives_of_an_address(
    kind: Callable[[State, Path], str], tmp_path: Path
) -> None:
    handler = partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        check(lambda state: f"{url}/{Path(kind(state, tmp_path)).name}", seed=4)
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_shards_have_all_of_a_source_between_them(
    kind: Callable[[State, Path], str], tmp_path: Path
) -> None:
    state = {f"{'ab'[n % 2]}/{n:02d}.png": n for n in range(30)}
    whole = opened(Path(kind(state, tmp_path)))
    shards = [whole.shard(number, 4) for number in range(4)]
    ids = [[item.id for item in shard.items()] for shard in shards]
    assert [len(part) for part in ids] == [shard.total for shard in shards]
    assert sorted(id_ for part in ids for id_ in part) == sorted(item.id for item in whole.items())
    if whole.total > 1:
        assert max(map(len, ids)) < whole.total / 2
    few = whole.limited(7)
    parts = [item.id for number in range(2) for item in few.shard(number, 2).items()]
    assert sorted(parts) == sorted(item.id for item in few.items())


@pytest.mark.long
def test_the_index_is_what_one_run_gives_of_a_bucket(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("IMAGE_SEARCH_S3_ENDPOINT", s3_server)
    client: Any = boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1")
    client.create_bucket(Bucket="kinds")
    there: State = {}

    def make(state: State) -> str:
        for name in there.keys() - state.keys():
            client.delete_object(Bucket="kinds", Key=f"pics/{name}")
        for name, seed in state.items():
            if there.get(name) != seed:
                client.put_object(Bucket="kinds", Key=f"pics/{name}", Body=png(seed))
        there.clear()
        there.update(state)
        return "s3://kinds/pics"

    check(make, seed=7)
