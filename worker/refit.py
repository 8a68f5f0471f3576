"""Fitting an index again: a new model for its images, and all of them embedded with it.

What is made is the successor of the index, beside it: the index goes on answering until the
successor is whole, which then takes its place at once. A run that was stopped or killed goes on
where it was.
"""

import json
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Final

import numpy as np

from image_search.embedding import Embedder
from image_search.errors import ImageError, IndexMismatchError, SourceError, StoreError
from image_search.index import Record, VectorIndex
from image_search.manifest import ModelSpec
from image_search.moments import seconds_of
from image_search.program import program
from image_search.progress import Progress
from image_search.sample import ImageSample
from image_search.settings import Settings
from image_search.stores.embedded.index import EmbeddedIndex
from image_search.stores.embedded.succession import Succession
from image_search.values import AUTO, DIGEST_FIELD, Metadata, Pixels
from image_search.videos import Sampling
from worker.confidence import recalibrate
from worker.ingest import Summary, chunks_of, digest_of, embed_all, ids_of, record_of
from worker.model import fit_model, load_embedder
from worker.recipes import LEAST_IMAGES
from worker.sources import Item, Source
from worker.sources.source import Video
from worker.videos import fetch_all, frame_ids, is_frame_of, open_frames

# What others write meanwhile makes it look again, this often.
_ROUNDS: Final = 5
_DELETED_AT_ONCE: Final = 1_000
_EXAMPLES: Final = 3


@dataclass
class Refit:
    """What was done. Fewer are `embedded` than it has `images` where another run began it."""

    embedded: int
    images: int
    dropped: int
    model: ModelSpec


def refit(
    sources: Sequence[Source],
    place: Succession,
    settings: Settings,
    *,
    drop_others: bool,
    stop: threading.Event,
) -> Refit | None:
    """Let a newly fitted index with the same images take the place of the one there is.

    The pictures are read from `sources`. Images that these do not have as the index has them cannot
    be embedded: SourceError is raised, unless they are to be dropped. None where `stop` was set
    meanwhile. Raises WeightsError, StoreError, IndexMismatchError and what sources raise.
    """
    former = place.former
    built_with = former.manifest
    if "metric" in settings.model_fields_set:
        built_with.require_metric(settings.metric)
    weights = built_with.model.weights if settings.weights == AUTO else settings.weights
    # What files tell of themselves is in the index, as far as it was wanted.
    settings = settings.model_copy(
        update={"metric": built_with.metric, "weights": weights, "metadata": "none"}
    )
    with ExitStack() as opened:
        successor: EmbeddedIndex | None = None
        embedded = 0
        for _ in range(_ROUNDS):
            images = _Images(former, sources, settings)
            if not images.find(stop):
                return None
            _refuse_others(images.others, former, drop_others=drop_others)
            if not images.source.total:
                raise SourceError("none of the images of the index is in the source")
            if successor is None:
                made = _open_or_make(place, images.pictures, settings, stop)
                if made is None:
                    return None
                successor, embedder = opened.enter_context(made[0]), made[1]
                embedder.warm_up()
            images.input_size = embedder.model.input_size
            summary = _embed(images.source, successor, embedder, settings, stop)
            embedded += summary.embedded
            if summary.interrupted:
                return None
            _refuse_others(summary.unreadable, former, drop_others=drop_others)
            recalibrate(successor, summary.sample, stop)
            successor.flush()
            if stop.is_set():
                return None
            dropped = images.others | summary.unreadable.keys()
            with place.writers_waiting():
                if images.are_up_to_date(successor, dropped):
                    place.put_in_use()
                    model = successor.manifest.model
                    return Refit(embedded, successor.count(), len(dropped), model)
    raise StoreError(
        "the index changed each time that its successor was complete: run it again to resume, "
        "when fewer images are being written"
    )


def joined(sources: Sequence[Source]) -> Source:
    """The items of all sources, one after another."""
    total = sum(source.total for source in sources)

    def some(positions: Collection[int]) -> Iterator[Item]:
        start = 0
        for source in sources:
            end = start + source.total
            own = {position - start for position in positions if start <= position < end}
            if own:
                yield from source.pick(own)
            start = end

    return Source(
        ", ".join(source.name for source in sources),
        total,
        lambda: chain.from_iterable(source.items() for source in sources),
        some=some,
    )


@dataclass
class _Images:
    """The images of an index, as sources have them: what can be embedded again.

    An image is one of the index if the source has the same bytes under its id. Label and metadata
    stay as the index has them.
    """

    index: EmbeddedIndex
    sources: Sequence[Source]
    settings: Settings
    # What frames are decoded for.
    input_size: int = 0
    # Ids that no source has so.
    others: set[str] = field(default_factory=set)
    source: Source = field(init=False)
    # The same, but videos as they are: for fitting, which takes one frame of each.
    pictures: Source = field(init=False)
    # Hashes of label and metadata, by id, of what was read for embedding.
    _seen: dict[str, int] = field(default_factory=dict)

    def find(self, stop: threading.Event) -> bool:
        """Compare sources and index; returns whether it was not stopped."""
        whole = joined(self.sources)
        self.others = set(self.index.ids())
        positions = []
        position = 0
        with Progress("comparing", whole.total, "images") as progress:
            for chunk in chunks_of(whole.items()):
                if stop.is_set():
                    return False
                for _, records in self._matched(chunk):
                    found = {record.id for record in records} & self.others
                    if found:
                        self.others -= found
                        positions.append(position)
                    position += 1
                progress.update(len(chunk))
        if self.others:
            # What was deleted meanwhile need not be embedded.
            self.others &= set(self.index.ids())

        def pick(chosen: Collection[int]) -> Iterator[Item]:
            return whole.pick({positions[number] for number in chosen})

        every = range(len(positions))
        self.pictures = Source(whole.name, len(positions), lambda: pick(every), some=pick)
        self.source = replace(
            self.pictures,
            items=lambda: self._as_indexed(pick(every)),
            some=lambda chosen: self._as_indexed(pick(chosen)),
        )
        return True

    def are_up_to_date(self, successor: EmbeddedIndex, dropped: Collection[str]) -> bool:
        """Whether the successor has what the index has now, but for what is dropped.

        What the index no longer has is deleted there, too.
        """
        embedded = set(successor.ids())
        kept = set()
        for id_, label, metadata in self.index.descriptions():
            if id_ in dropped:
                continue
            if id_ not in embedded or self._seen.get(id_) != _hash(label, metadata):
                return False
            kept.add(id_)
        gone = sorted(embedded - kept)
        for start in range(0, len(gone), _DELETED_AT_ONCE):
            successor.delete(gone[start : start + _DELETED_AT_ONCE])
        return True

    def _as_indexed(self, items: Iterator[Item]) -> Iterator[Item]:
        for chunk in chunks_of(items):
            for item, records in self._matched(chunk):
                # Without any, it was deleted or replaced meanwhile.
                for record in records:
                    self._seen[record.id] = _hash(record.label, record.metadata)
                if isinstance(item.content, Video):
                    yield from self._frames(item.content, records)
                    continue
                for record in records:
                    yield _described(record, item.content)

    def _frames(self, video: Video, records: list[Record]) -> Iterator[Item]:
        """The frames that the index has, decoded again."""
        left = {seconds_of(record.id): record for record in records}
        reason = ImageError("the frame cannot be decoded again")
        if left:
            sampling = Sampling(times=tuple(sorted(left)), distinct=False)
            try:
                with open_frames(video, sampling, self.settings, self.input_size) as frames:
                    for frame in frames:
                        record = left.pop(frame.time, None)
                        if record is not None:
                            yield _described(record, np.asarray(frame.image))
            except ImageError as exc:
                reason = exc
        for record in left.values():
            yield _described(record, reason)

    def _matched(self, chunk: list[Item]) -> Iterator[tuple[Item, list[Record]]]:
        """The items, each with what the index has of it: a record, or those of a video's frames."""
        images = [item for item in chunk if not isinstance(item.content, Video)]
        records = self.index.fetch([id_ for item in images for id_ in ids_of(item)])
        for item in chunk:
            if isinstance(item.content, ImageError):
                yield item, []
            elif isinstance(item.content, Video):
                found = digest_of(item)
                of_video = fetch_all(self.index, frame_ids(self.index, item.id))
                yield item, [record for record in of_video if is_frame_of(record, found)]
            else:
                record = record_of(item, digest_of(item), records)
                yield item, [] if record is None else [record]


def _described(record: Record, content: bytes | Pixels | Video | ImageError) -> Item:
    """What was read, as the index describes it."""
    metadata = {**record.metadata}
    sha256 = str(metadata.pop(DIGEST_FIELD))
    return Item(record.id, record.label, content, metadata, sha256=sha256)


def _hash(label: str | None, metadata: Metadata) -> int:
    return hash((label, json.dumps(dict(metadata), sort_keys=True)))


def _refuse_others(ids: Collection[str], index: VectorIndex, *, drop_others: bool) -> None:
    if not ids or drop_others:
        return
    examples = ", ".join(sorted(ids)[:_EXAMPLES]) + (", …" if len(ids) > _EXAMPLES else "")
    raise SourceError(
        f"{len(ids):,} of the {index.count():,} images of the index cannot be embedded again: "
        f"the source does not have them exactly as the index has: {examples}. If files have "
        f"changed, ingest them first; name all sources of the index ({program('worker')} "
        "sources lists them); or add --drop-others to drop these images"
    )


def _open_or_make(
    place: Succession, source: Source, settings: Settings, stop: threading.Event
) -> tuple[EmbeddedIndex, Embedder] | None:
    """What an earlier run has begun, if it is what the settings ask for, or a new successor."""
    begun = place.open()
    if begun is not None:
        try:
            embedder = load_embedder(begun, settings)
        except IndexMismatchError:
            print("an earlier run used another model: starting again")
        else:
            is_plain = begun.manifest.model.recipe == "none"
            if not (is_plain and settings.recipe == AUTO and source.total >= LEAST_IMAGES):
                print(f"resuming an earlier run: {begun.count():,} images")
                return begun, embedder
        begun.close()
    new = fit_model(source, settings, stop)
    if new is None:
        return None
    model = new.manifest.model
    print(
        f"input size {model.input_size} ({new.manifest.input_size_reason}), recipe {model.recipe}",
        flush=True,
    )
    return place.create(new.manifest, new.recipe), new.embedder


def _embed(
    source: Source,
    successor: EmbeddedIndex,
    embedder: Embedder,
    settings: Settings,
    stop: threading.Event,
) -> Summary:
    stored = successor.load_sample()

    def keep(sample: ImageSample) -> None:
        successor.save_sample(stored.joined(sample.ids, sample.textures, sample.bound))

    return embed_all(source, successor, embedder, settings, stop, keep)
