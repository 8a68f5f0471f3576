"""Two services and a worker on one folder, and whatever befalls them; each answer is checked.

usage: python -m benchmarks.soak SOURCE [--images N] [--seconds N]

Images are upserted and deleted over HTTP, the worker ingests more and fits the index again, and
services and workers are killed with SIGKILL. While the index is fitted again, images are deleted,
but not upserted. Meanwhile each answer is compared with an exact search
in NumPy, of the images that are known to be in the index: those that nobody has been changing for a
second. It ends with exit code 1 where an answer is wrong.
"""

import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from benchmarks.measure import Table, normalised, parser
from benchmarks.serving import as_png
from image_search.embedding import Embedder, min_side
from image_search.errors import ImageSearchError
from image_search.manifest import ModelSpec
from image_search.settings import Settings, load_settings
from image_search.stores import open_index
from image_search.values import Embeddings
from tests.support.processes import Service, start
from tests.support.servers import find_free_port
from worker.ingest import make_decoder
from worker.sources import open_source

INPUT_SIZE = 32
QUERIES = 50
TOP_K = 10
# Of what is ready to be ingested at first.
READY_SHARE = 0.7
FILES_PER_INGEST = 0.02
SECONDS_TO_BE_SEEN = 1.0
SECONDS_BETWEEN_WRITES = 0.1
# While images are only deleted.
SECONDS_BETWEEN_DELETES = 0.5
SECONDS_BETWEEN_KILLS = 15.0
REFIT_EVERY = 2  # runs of the worker
WORKERS_KILLED = 0.3
SCORE_TOLERANCE = 1e-3
KEY = "soak"


@dataclass
class Item:
    """An image of the index: the file, whether the index is known to have it, and since when.

    `changes` grows whenever someone begins to change that; while someone does, `is_there` is None.
    """

    id: str
    label: str
    path: Path
    content: bytes
    is_there: bool | None = False
    since: float = 0.0
    changes: int = 0

    def begin(self) -> int:
        """Someone changes it; returns what `end` takes."""
        self.is_there = None
        self.changes += 1
        return self.changes

    def end(self, change: int, *, is_there: bool) -> None:
        """It was changed, unless someone else began to, too."""
        if self.changes == change:
            self.is_there, self.since = is_there, time.monotonic()


@dataclass
class Found:
    """What was seen."""

    counts: Counter[str] = field(default_factory=Counter)
    recalls: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Oracle:
    """Exact scores by each model that the index has had."""

    def __init__(self, settings: Settings, items: Sequence[Item], queries: Sequence[bytes]) -> None:
        self._settings = settings
        self._contents = [*(item.content for item in items), *queries]
        self._count = len(items)
        self._lock = threading.Lock()
        self._known: dict[ModelSpec, tuple[Embeddings, Embeddings]] = {}
        self.newest: ModelSpec | None = None

    def scores(self, model: ModelSpec, query: int) -> Embeddings | None:
        """float32 [images] for a query; None for a model that is no longer on disk."""
        with self._lock:
            if model not in self._known and not self._learn(model):
                return None
            images, queries = self._known[model]
        return np.asarray(images @ queries[query])

    def _learn(self, model: ModelSpec) -> bool:
        try:
            with open_index(self._settings) as index:
                manifest, recipe = index.manifest, index.load_recipe()
        except ImageSearchError:
            return False
        if manifest.model != model:
            return False
        embedder = Embedder.load(
            model.weights, model.input_size, manifest.activation_maxima, recipe
        )
        decoder = make_decoder(self._settings)
        embedded = []
        for start_ in range(0, len(self._contents), 64):
            pixels = [
                embedder.pixels(decoder.decode(each, min_side=min_side(model.input_size)))
                for each in self._contents[start_ : start_ + 64]
            ]
            embedded.append(embedder.embed(pixels))
        decoder.close()
        rows = normalised(np.concatenate(embedded))
        self._known[model] = rows[: self._count], rows[self._count :]
        self.newest = model
        return True


class Soak:
    """All that goes on at once."""

    def __init__(self, folder: Path, items: list[Item], queries: list[bytes], seconds: float):
        self._environ = {
            "IMAGE_SEARCH_DATA_DIR": str(folder / "data"),
            "IMAGE_SEARCH_INPUT_SIZE": str(INPUT_SIZE),
            "IMAGE_SEARCH_API_KEYS": KEY,
        }
        self._pictures = folder / "pictures"
        self._items = items
        self._by_id = {item.id: number for number, item in enumerate(items)}
        self._queries = queries
        settings = load_settings(
            data_dir=folder / "data", input_size=INPUT_SIZE, store="embedded", weights="bundled"
        )
        self._oracle = Oracle(settings, items, queries)
        self._seconds = seconds
        self._done = threading.Event()
        self._ready = [threading.Event(), threading.Event()]
        self._services: list[Service] = []
        self._refit_since = time.monotonic()
        self._refitting = threading.Event()
        self._waiting = list(items)
        self._failed: list[BaseException] = []
        self.found = Found()

    def run(self) -> None:
        """Until the time is over."""
        self._ingest(int(READY_SHARE * len(self._items)), may_kill=False)
        with ExitStack() as stack:
            for number in range(len(self._ready)):
                self._services.append(self._served(number))
                stack.callback(self._end, number)
            works = [self._write, self._work, self._kill]
            works += [partial(self._search, number) for number in range(len(self._services))]
            threads = [threading.Thread(target=self._until_done, args=(work,)) for work in works]
            for thread in threads:
                thread.start()
            self._done.wait(self._seconds)
            self._done.set()
            for thread in threads:
                thread.join()
        if self._failed:
            raise self._failed[0]

    def _until_done(self, work: Callable[[], None]) -> None:
        try:
            while not self._done.is_set():
                work()
        except BaseException as exc:
            self._failed.append(exc)
            self._done.set()

    def _served(self, number: int) -> Service:
        service = Service(find_free_port(), **self._environ)
        while service.health() != httpx2.codes.OK:
            time.sleep(0.1)
        self._ready[number].set()
        return service

    def _end(self, number: int) -> None:
        self._ready[number].clear()
        self._services[number].process.kill()
        self._services[number].process.communicate()

    # --- what befalls the index ---

    def _kill(self) -> None:
        if self._done.wait(SECONDS_BETWEEN_KILLS * random.uniform(0.5, 1.5)):
            return
        number = random.randrange(len(self._services))
        self._end(number)
        self._services[number] = self._served(number)
        self.found.counts["services killed"] += 1

    def _write(self) -> None:
        refitting = self._refitting.is_set()
        pause = SECONDS_BETWEEN_DELETES if refitting else SECONDS_BETWEEN_WRITES
        self._done.wait(pause * random.uniform(0, 2))
        deleted = [item for item in self._items if item.is_there is False and item.changes]
        # As often one of the few that can be upserted.
        item = random.choice(deleted if deleted and random.random() < 0.5 else self._items)
        if item.is_there is None and item in self._waiting:
            return
        if item.is_there is False and item.changes == 0:
            return  # the worker brings it
        is_there = not item.is_there
        if is_there and self._refitting.is_set():
            return  # else the refit, which has to have it, begins again, and gives up in the end
        service = random.choice(self._services)
        change = item.begin()
        url = f"{service.url}/images/{item.id}"
        headers = {"X-API-Key": KEY}
        with suppress(httpx2.TransportError):
            if is_there:
                files, data = {"image": item.content}, {"label": item.label}
                answer = httpx2.put(url, files=files, params=data, headers=headers, timeout=60)
            else:
                answer = httpx2.delete(url, headers=headers, timeout=60)
            gone = not is_there and answer.status_code == httpx2.codes.NOT_FOUND
            if answer.is_success or gone:
                item.end(change, is_there=is_there)
                self.found.counts["upserted" if is_there else "deleted"] += 1
            elif answer.status_code != httpx2.codes.SERVICE_UNAVAILABLE:
                self._tell(f"a write was answered {answer.status_code}: {answer.text}")

    def _work(self) -> None:
        runs = self.found.counts["ingested"] + self.found.counts["workers killed"]
        if runs % REFIT_EVERY == REFIT_EVERY - 1:
            self._refit()
        self._ingest(max(1, int(FILES_PER_INGEST * len(self._items))))

    def _ingest(self, files: int, *, may_kill: bool = True) -> None:
        """Let the worker find so many more files."""
        new = [item for item in self._waiting if item.path.exists()]
        for item in [item for item in self._waiting if not item.path.exists()][:files]:
            item.path.parent.mkdir(parents=True, exist_ok=True)
            item.path.write_bytes(item.content)
            new.append(item)
        changes = [(item, item.begin()) for item in new]
        if self._ran("ingest", str(self._pictures), may_kill=may_kill):
            self.found.counts["ingested"] += 1
            for item, change in changes:
                item.end(change, is_there=True)
                self._waiting.remove(item)

    def _refit(self) -> None:
        self._refit_since = time.monotonic()
        self._refitting.set()
        if self._ran("refit", str(self._pictures), may_kill=True):
            self.found.counts["fitted again"] += 1
        self._refitting.clear()

    def _ran(self, *command: str, may_kill: bool) -> bool:
        """Whether a worker came to its end."""
        process = start("worker", *command, **self._environ)
        if may_kill and random.random() < WORKERS_KILLED:
            self._done.wait(random.uniform(1, 8))
            process.kill()
        _, err = process.communicate()
        if process.returncode < 0:
            self.found.counts["workers killed"] += 1
        elif process.returncode:
            # As where another process wrote; what is wrong with the index shows in answers.
            self.found.counts["workers that gave up"] += 1
            print(err.strip().splitlines()[-1], file=sys.stderr, flush=True)
        if "Traceback" in err:
            self._tell(err)
        return process.returncode == 0

    # --- what is found in it ---

    def _search(self, number: int) -> None:
        if not self._ready[number].wait(0.1):
            return
        query = random.randrange(len(self._queries))
        label = random.choice([None, None, random.choice(self._items).label])
        began = time.monotonic()
        before = [
            (item.changes, item.is_there if item.since <= began - SECONDS_TO_BE_SEEN else None)
            for item in self._items
        ]
        since = [item.since for item in self._items]
        try:
            answer = httpx2.post(
                f"{self._services[number].url}/search",
                params={
                    "top_k": TOP_K,
                    "thumbnails": "false",
                    **({"label": label} if label else {}),
                },
                files={"image": self._queries[query]},
                timeout=60,
            )
        except httpx2.TransportError:
            self.found.counts["searches that a kill ended"] += 1
            time.sleep(0.1)
            return
        if answer.status_code == httpx2.codes.SERVICE_UNAVAILABLE:
            self.found.counts["searches answered 503"] += 1
            time.sleep(0.1)
            return
        if answer.status_code != httpx2.codes.OK:
            self._tell(f"a search was answered {answer.status_code}: {answer.text}")
            return
        known = [
            is_there if item.changes == changes else None
            for item, (changes, is_there) in zip(self._items, before, strict=True)
        ]
        model = ModelSpec(**answer.json()["model"])
        if model != self._oracle.newest:
            # A service answers by the former index until it has loaded the new one's model.
            known = [
                is_there if at < self._refit_since else None
                for is_there, at in zip(known, since, strict=True)
            ]
        scores = self._oracle.scores(model, query)
        if scores is None:
            self.found.counts["searches by a model that is gone"] += 1
            return
        self._check(answer.json()["matches"], scores, known, label)

    def _check(
        self,
        matches: list[dict[str, Any]],
        scores: Embeddings,
        known: list[bool | None],
        label: str | None,
    ) -> None:
        self.found.counts["searches"] += 1
        found = {self._by_id[match["id"]]: match for match in matches}
        for number, match in found.items():
            item = self._items[number]
            if known[number] is False:
                self._tell(f"{item.id} is found, though it was deleted {item.since}")
            if label not in {None, match["label"]} or match["label"] != item.label:
                self._tell(f"{item.id} has the label {match['label']}; {label} was asked for")
            if abs(match["score"] - scores[number]) > SCORE_TOLERANCE:
                self._tell(f"{item.id} has the score {match['score']}, not {scores[number]}")
        there = [
            number
            for number, is_there in enumerate(known)
            if is_there and label in {None, self._items[number].label}
        ]
        best = sorted(there, key=lambda number: -scores[number])[:TOP_K]
        least = min((match["score"] for match in matches), default=-np.inf)
        if len(matches) < TOP_K:
            least = -np.inf
        missed = sum(
            scores[number] > least + SCORE_TOLERANCE and number not in found for number in best
        )
        if best:
            self.found.recalls.append(1 - missed / len(best))

    def _tell(self, what: str) -> None:
        self.found.wrong.append(what)
        print(what, file=sys.stderr, flush=True)


def soak(source: str, images: int, seconds: float, folder: Path) -> Found:
    """What was seen in so many seconds with images of a source; files go to the folder."""
    items, queries = [], []
    for split in ("train", "test"):
        opened = open_source(source, split=split, data_dir=load_settings().local_dir)
        for number, each in enumerate(
            islice(opened.items(), images if split == "train" else QUERIES)
        ):
            content = each.content
            if not isinstance(content, bytes):
                content = as_png(np.asarray(content))
            if split == "test":
                queries.append(content)
                continue
            id_ = f"pictures/{each.label}/{number:05d}.png"
            items.append(Item(id_, str(each.label), folder / id_, content))
    random.Random(0).shuffle(items)
    running = Soak(folder, items, queries, seconds)
    running.run()
    return running.found


def table(found: Found, images: int) -> Table:
    """What was seen."""
    recall = float(np.mean(found.recalls))
    rows = [[name, f"{count:,}"] for name, count in sorted(found.counts.items())]
    rows += [["answers that are wrong", f"{len(found.wrong):,}"]]
    rows += [[f"recall@{TOP_K}", f"{recall:.4f}"]]
    return Table(f"Soak with {images:,} images", ["", ""], rows, [], {"recall": recall})


def main() -> int:
    """Command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--seconds", type=float, default=600, metavar="N", help="(%(default)s)")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(chosen.source, chosen.images, chosen.seconds, Path(folder))
    print(table(found, chosen.images))
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
