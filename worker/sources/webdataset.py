"""WebDataset: tar archives in which an image and what is known of it have one name.

https://github.com/webdataset/webdataset: the files of a sample follow each other, and their names
are the same up to the first dot: 0001.jpg, 0001.cls, 0001.json.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Final

from image_search import images, videos
from image_search.errors import ImageError, SourceError
from image_search.values import LABEL_FIELD
from worker.sources.archive import damage_at_end, extract, stem_of
from worker.sources.columns import Columns
from worker.sources.files import Choice, describe, is_video, matching_split, read_bounded, reading
from worker.sources.labels import split_of_file
from worker.sources.names import as_text, composed, file_bytes, id_of, printable
from worker.sources.skipped import Kind, Skipped
from worker.sources.source import Item, Origin, Source, damage_named, positions_in

_CLASS: Final = "cls"
_FIELDS: Final = "json"
_TEXT: Final = "txt"
_TEXT_FIELD: Final = "text"
# In so many files at the beginning a sample that is labelled is looked for.
_LOOKED_AT: Final = 100


def is_webdataset(path: Path) -> bool:
    """Whether a tar archive begins with images beside which there is a .cls or .json file."""
    with tarfile.open(path) as archive:
        members = [member for member in islice(archive, _LOOKED_AT) if member.isfile()]
    samples: dict[str, set[str]] = {}
    for member in members:
        key, extension = _parts(member.name)
        samples.setdefault(key, set()).add(extension)
    suffixes = _suffixes()
    return any(
        extensions & {_CLASS, _FIELDS} and any(_is_image(e, suffixes) for e in extensions)
        for extensions in samples.values()
    )


def open_webdataset(path: Path, names: Sequence[str], skipped: Skipped, choice: Choice) -> Source:
    """The images of a tar archive, or of those with these names in a folder."""
    title = printable(as_text(str(path)))
    shards = [_Shard(path / name if name else path, name) for name in names or [""]]
    splits = sorted({split for shard in shards if (split := split_of_file(shard.name_of_file))})
    is_chosen = matching_split(title, splits, choice)
    if is_chosen:
        shards = [shard for shard in shards if is_chosen(split_of_file(shard.name_of_file))]
    columns = Columns(["split"])
    labels: Counter[str | None] = Counter()
    for shard in shards:
        shard.learn(columns, labels, skipped)
    if choice.label_from == "none":
        labels = Counter({None: labels.total()})
    if not labels:
        raise SourceError(f"{title} has no images")
    about = describe("of the .cls or .json file beside an image", labels, splits)
    if columns.names:
        about += f"; metadata: {', '.join(map(printable, columns.names))}"
    place = printable(as_text(str(path.resolve())))

    def named(name: str) -> Source:
        def items(positions: Collection[int] | None) -> Iterator[Item]:
            parts = [(shard, shard.total) for shard in shards]
            for shard, wanted in positions_in(parts, positions):
                for item in shard.items(name, columns, wanted):
                    yield item if choice.label_from != "none" else _unlabelled(item)

        return Source(
            title,
            labels.total(),
            lambda: items(None),
            about,
            tuple(splits),
            skipped,
            items,
            origin=Origin(name, place, named),
        )

    return named(path.resolve().name if names else stem_of(path.name))


def _unlabelled(item: Item) -> Item:
    return Item(item.id, None, item.content, item.metadata)


@dataclass
class _Shard:
    path: Path
    name: str
    total: int = 0
    suffixes: set[str] = field(default_factory=lambda: _suffixes())

    @property
    def name_of_file(self) -> str:
        return self.name or self.path.name

    def learn(self, columns: Columns, labels: Counter[str | None], skipped: Skipped) -> None:
        """Count the images by label, and see what the others files tell."""
        with damage_named(self.path), tarfile.open(self.path) as archive:
            for members in _samples(archive):
                fields = _fields(archive, members)
                for member in members:
                    extension = _parts(member.name)[1]
                    if _is_image(extension, self.suffixes):
                        self.total += 1
                        labels[_label(fields)] += 1
                    elif extension not in {_CLASS, _FIELDS, _TEXT}:
                        skipped.add(Kind.NOT_IMAGE, printable(as_text(member.name)))
                columns.learn(fields)
            damage_at_end(archive)

    def items(
        self, source: str, columns: Columns, positions: Sequence[int] | None
    ) -> Iterator[Item]:
        """The images, all or those at these positions."""
        wanted = None if positions is None else set(positions)
        stem = stem_of(self.name_of_file)
        folder = f"{source}/{stem}/" if self.name else f"{source}/"
        split = split_of_file(self.name_of_file)
        number = 0
        with damage_named(self.path), tarfile.open(self.path) as archive:
            for members in _samples(archive):
                of_images = [m for m in members if _is_image(_parts(m.name)[1], self.suffixes)]
                chosen = [
                    member
                    for position, member in enumerate(of_images, number)
                    if wanted is None or position in wanted
                ]
                number += len(of_images)
                fields = _fields(archive, members) if chosen else {}
                for member in chosen:
                    name = member.name.removeprefix("./").lstrip("/")
                    metadata = {
                        "source": composed(as_text(source)),
                        "path": composed(as_text(name)),
                        **columns.metadata(fields),
                        **({"split": split} if split else {}),
                    }
                    id_ = id_of(file_bytes(composed(f"{folder}{name}")))
                    open_ = partial(extract, archive, member)
                    with reading(open_, is_video=is_video(name)) as content:
                        yield Item(id_, _label(fields), content, metadata)
                if wanted is not None and number > max(wanted):
                    return


def _suffixes() -> set[str]:
    return images.file_suffixes() | (videos.file_suffixes() if videos.is_available() else set())


def _samples(archive: tarfile.TarFile) -> Iterator[list[tarfile.TarInfo]]:
    """Files with the same key that follow each other."""
    files = (member for member in archive if member.isfile())
    for _, members in groupby(files, key=lambda member: _parts(member.name)[0]):
        yield list(members)


def _parts(name: str) -> tuple[str, str]:
    """What is the same in the names of a sample, and what differs."""
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return folder + slash + key, extension.lower()


def _is_image(extension: str, suffixes: Collection[str]) -> bool:
    return f".{extension.rpartition('.')[2]}" in suffixes


def _fields(archive: tarfile.TarFile, members: list[tarfile.TarInfo]) -> dict[str, Any]:
    """What a sample's .json, .txt and .cls files tell; the last is under `label`."""
    fields: dict[str, Any] = {}
    contents: dict[str, str] = {}
    for member in members:
        extension = _parts(member.name)[1]
        if extension in {_CLASS, _FIELDS, _TEXT}:
            content = read_bounded(partial(extract, archive, member))
            if not isinstance(content, ImageError):
                contents[extension] = content.decode("utf-8", "replace")
    try:
        loaded = json.loads(contents.get(_FIELDS, "{}"))
    except (ValueError, RecursionError):
        loaded = {}
    if isinstance(loaded, dict):
        fields |= loaded
    if _TEXT in contents:
        fields.setdefault(_TEXT_FIELD, contents[_TEXT].strip())
    if contents.get(_CLASS, "").strip():
        fields.setdefault(LABEL_FIELD, contents[_CLASS].strip())
    return fields


def _label(fields: dict[str, Any]) -> str | None:
    """A name, where there is one, is preferred to a number."""
    label = fields.get(LABEL_FIELD)
    return composed(str(label)) if isinstance(label, str | int) and label != "" else None
