"""Groups of near-duplicates, made of the pairs that searches find."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from image_search_client.errors import InvalidRequestError
from image_search_client.results import Duplicate, Health, IndexedImage, Match, MetadataValue

# As many matches as one search gives.
MOST_MATCHES: Final = 100


class Image(NamedTuple):
    """An image of the index, and what it counts as: itself, or its whole video."""

    id: str
    label: str | None
    item: str

    @classmethod
    def of(cls, image: IndexedImage | Match) -> "Image":
        """As a search or a listing has it."""
        return cls(image.id, image.label, _video(image.metadata) or image.id)


class Scores:
    """What a cosine is as a score of the index's metric, and the reverse."""

    def __init__(self, health: Health) -> None:
        """Raises InvalidRequestError where scores depend on the lengths of embeddings, too."""
        self._metric = health.metric
        if health.metric != "cosine" and health.model.recipe == "none":
            raise InvalidRequestError(
                f"the index has plain embeddings and the metric {health.metric}, whose scores are "
                "no cosines: use python -m worker duplicates",
                "invalid_parameter",
            )

    def of(self, cosine: float) -> float:
        """The score of two embeddings of length 1."""
        return 2 - 2 * cosine if self._metric == "euclidean" else cosine

    def cosine(self, score: float) -> float:
        """The cosine of two embeddings of length 1."""
        return 1 - score / 2 if self._metric == "euclidean" else score


class Groups:
    """Disjoint sets of images and videos, https://doi.org/10.1145/321879.321884."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}
        self._best: dict[str, Duplicate] = {}

    def join(self, one: Image, other: Image, cosine: float) -> None:
        """Put the groups of two images together, unless both are of one video."""
        if one.item == other.item:
            return
        for image in (one, other):
            best = self._best.get(image.item)
            if best is None or (-cosine, image.id) < (-best.score, best.id):
                self._best[image.item] = Duplicate(image.id, image.label, cosine)
        self._parents[self._root(other.item)] = self._root(one.item)

    def listed(self) -> list[tuple[Duplicate, ...]]:
        """The largest first, and equal ones by their first id; in each, images by id."""
        members: dict[str, list[Duplicate]] = {}
        for item, image in self._best.items():
            members.setdefault(self._root(item), []).append(image)
        groups = [tuple(sorted(group, key=lambda image: image.id)) for group in members.values()]
        return sorted(groups, key=lambda group: (-len(group), group[0].id))

    def _root(self, item: str) -> str:
        root = item
        while (parent := self._parents.setdefault(root, root)) != root:
            root = parent
        while item != root:
            item, self._parents[item] = self._parents[item], root
        return root


def _video(metadata: Mapping[str, MetadataValue]) -> str | None:
    video = metadata.get("video")
    return video if isinstance(video, str) else None
