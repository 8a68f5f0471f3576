"""Labels and splits from the folders that images lie in."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

LabelFrom = Literal["auto", "top", "parent", "none"]
LABEL_FROM: Final[tuple[LabelFrom, ...]] = get_args(LabelFrom)

# Folder names of a split, by the name that `--split` knows it by.
_SPLITS: Final = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation", "holdout"),
}
_SPLIT_OF: Final = {name: split for split, names in _SPLITS.items() for name in names}
# As in COCO's train2017 and Kaggle's training_set.
_SPLIT_FOLDER: Final = re.compile(
    rf"({'|'.join(_SPLIT_OF)})([-_ ]?(set|data|images?|\d{{1,4}}))?", re.IGNORECASE
)

# Where all images lie in one folder, these names tell no class.
_NO_CLASSES: Final = {
    *("images", "image", "imgs", "img", "pictures", "photos", "data"),
    *("jpegimages", "jpeg", "jpg", "png"),
}

_Folder = tuple[str, ...]


def split_of(folder: str) -> str | None:
    """train, val or test, where that is what a folder's name says."""
    match = _SPLIT_FOLDER.fullmatch(folder)
    return _SPLIT_OF[match[1].lower()] if match else None


def split_of_file(name: str) -> str | None:
    """The split that a part of a data set is of, by its path and name, in lower case.

    As in data/train-00000-of-00002.parquet, or in train/0000.tar.
    """
    *folders, file = name.split("/")
    for part in (*folders, re.split(r"[-_.]", file)[0]):
        if split_of(part):
            return part.lower()
    return None


@dataclass(frozen=True)
class Place:
    """What a folder says of the images in it; `split` is the name of a folder, in lower case."""

    label: str | None
    split: str | None


@dataclass(frozen=True)
class Layout:
    """What each folder tells, by its path, and the rule that it follows from, for people."""

    places: Mapping[str, Place]
    rule: str


def find_layout(folders: Counter[str], label_from: LabelFrom) -> Layout:
    """The layout of images, of which `folders` counts those that lie directly in each folder.

    A folder is named by its path from the source, with slashes; the source itself is "".

    Folders that hold nothing but one folder are wrappers, and are skipped. If the folders that
    come then are called train, val, test or alike, they are splits; wrappers inside each are
    skipped, too. The label is the first folder after that, however deep the image lies in it. What
    lies beside those folders has no label, and nothing has one if the only one were `images`.
    """
    parts = {name: _parts(name) for name in folders}
    counts = {parts[name]: count for name, count in folders.items()}
    wrappers = _wrappers(counts)
    splits = _are_splits(counts, wrappers)
    start = dict.fromkeys(counts, wrappers)
    split: dict[_Folder, str | None] = dict.fromkeys(counts)
    if splits:
        groups: dict[str, dict[_Folder, int]] = {}
        for folder, count in counts.items():
            if len(folder) > wrappers:
                groups.setdefault(folder[wrappers], {})[folder] = count
        for name, group in groups.items():
            inner = _wrappers(group, wrappers + 1)
            for folder in group:
                split[folder], start[folder] = name.lower(), inner
        _forget_lone_folders(groups, start)
    inner_splits = not splits and _are_inner_splits(counts, wrappers)
    places = {}
    for name, folder in parts.items():
        at = start[folder]
        label = folder[at] if len(folder) > at else None
        if inner_splits and len(folder) > at + 1:
            split[folder] = folder[at + 1].lower()
        if label_from != "auto":
            chosen = {"top": folder[:1], "parent": folder[-1:], "none": ()}[label_from]
            label = chosen[0] if chosen else None
        places[name] = Place(label, split[folder])
    labels = {place.label.lower() for place in places.values() if place.label is not None}
    if label_from == "auto" and len(labels) == 1 and labels <= _NO_CLASSES:
        places = {name: replace(place, label=None) for name, place in places.items()}
    return Layout(places, _rule(label_from, counts, wrappers, splits=splits, inner=inner_splits))


def _parts(name: str) -> _Folder:
    return tuple(name.split("/")) if name else ()


def _heads(counts: Iterable[_Folder], depth: int) -> set[str]:
    return {folder[depth] for folder in counts if len(folder) > depth}


def _wrappers(counts: Mapping[_Folder, int], in_split: int = 0) -> int:
    """How many folders, counted from the source, hold nothing but the next.

    Within a split, of which the first `in_split` folders are known, no other split is looked for.
    """
    depth = in_split
    while True:
        heads = _heads(counts, depth)
        if len(heads) != 1 or any(len(folder) <= depth for folder in counts):
            return depth
        inside = _heads(counts, depth + 1)
        loose = sum(count for folder, count in counts.items() if len(folder) == depth + 1)
        # A folder of images with folders in it is a label, unless most lie in several of those.
        if not inside or (loose and (len(inside) < 2 or 2 * loose > sum(counts.values()))):
            return depth
        if split_of(heads.pop()) and not in_split:
            return depth
        depth += 1


def _are_splits(counts: Mapping[_Folder, int], depth: int) -> bool:
    """Whether the folders there are train, test and so on, and no classes of these names."""
    heads = _heads(counts, depth)
    kinds = {split_of(head) for head in heads}
    return bool(heads) and (None not in kinds or len(kinds - {None}) > 1)


def _are_inner_splits(counts: Mapping[_Folder, int], depth: int) -> bool:
    """Whether each label holds nothing but splits: cat/train, cat/test, dog/train and so on."""
    return (
        len({split_of(head) for head in _heads(counts, depth + 1)} - {None}) > 1
        and all(map(split_of, _heads(counts, depth + 1)))
        and all(len(folder) != depth + 1 for folder in counts)
    )


def _forget_lone_folders(
    groups: Mapping[str, Mapping[_Folder, int]], start: dict[_Folder, int]
) -> None:
    """The one folder of a split that no other split has is no class: test/images, test/unknown."""
    names = {
        split: {folder[start[folder]] for folder in group if len(folder) > start[folder]}
        for split, group in groups.items()
    }
    for split, own in names.items():
        others = set().union(*(names[other] for other in names if other != split))
        if len(own) == 1 and len(others) > 1 and not own & others:
            for folder in groups[split]:
                start[folder] = max(start[folder], len(folder))


def _rule(
    label_from: LabelFrom,
    counts: Mapping[_Folder, int],
    wrappers: int,
    *,
    splits: bool,
    inner: bool,
) -> str:
    """Where a label stands in a path, such as animals/SPLIT/LABEL/…"""
    if label_from == "none":
        return "no labels, as requested"
    if label_from == "parent":
        return "the folder that contains the image"
    if label_from == "top":
        return "LABEL in LABEL/…"
    shared: Sequence[str] = next(iter(counts), ())[:wrappers]
    shape = [*shared, *(["SPLIT"] if splits else []), "LABEL", *(["SPLIT"] if inner else []), "…"]
    return f"LABEL in {'/'.join(shape)}"
