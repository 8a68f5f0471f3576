"""A random sample of all images of an index, which every ingest keeps up."""

import hashlib
import io
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Self

import numpy as np

from image_search.moments import item_of
from image_search.values import BLOCKS, Features

# Numbered from 1: the blocks of VGG16 whose averages the sample keeps.
TEXTURE_BLOCKS: Final = (2, 3)
TEXTURES: Final = sum(BLOCKS[block - 1][1] for block in TEXTURE_BLOCKS)

_SIZE: Final = 2000
_LEAST_IMAGES: Final = 100
# What part of the index it has to be drawn from, to stand for it.
_LEAST_SHARE: Final = 0.8
_RANKS: Final = 2.0**64
_FINGERPRINT_DIGITS: Final = 16


def rank(id_: str) -> float:
    """A number from 0 to 1 that is as good as random, and always the same for an id."""
    return int.from_bytes(hashlib.sha256(id_.encode()).digest()[:8]) / _RANKS


def bound_to_mend(sample: "ImageSample", indexed: int) -> float:
    """Below which rank the sample is to have all images of an index of so many.

    0 where it stands for them as it is.
    """
    if indexed == 0 or replace(sample, indexed=indexed).is_representative:
        return 0.0
    return min(1.0, _SIZE / indexed)


@dataclass(frozen=True, eq=False)
class ImageSample:
    """Images drawn at random from all that were ingested, and their textures.

    They are those of the lowest rank, "Summarizing data using bottom-k sketches",
    https://doi.org/10.1145/1281100.1281133: so each is as likely as any other, whichever ingest it
    came with, and two samples join to one of both. A video counts as one image, of which one frame
    is taken. `textures` is float32 [n, 384], in the order of `ids`, which is that of their ranks.
    Every image of a rank below `bound` is there. `indexed` is how many images the index had.
    """

    ids: tuple[str, ...] = ()
    textures: Features = field(default_factory=lambda: np.empty((0, TEXTURES), np.float32))
    bound: float = 1.0
    indexed: int = 0

    def joined(self, ids: Sequence[str], textures: Features, bound: float = 1.0) -> Self:
        """With the images of another sample, or with all that there are; they replace equal ids."""
        bound = min(self.bound, bound)
        new = {
            id_: row for id_, row in zip(ids, textures, strict=True) if rank(item_of(id_)) < bound
        }
        if not new and bound == self.bound:
            return self
        rows = {**dict(zip(self.ids, self.textures, strict=True)), **new}
        # Of a video the same frame, whichever comes first.
        chosen: dict[str, str] = {}
        for id_ in rows:
            item = item_of(id_)
            chosen[item] = min(id_, chosen.get(item, id_), key=rank)
        ranked = sorted(
            (number, id_) for item, id_ in chosen.items() if (number := rank(item)) < bound
        )
        if len(ranked) > _SIZE:
            bound = ranked[_SIZE][0]
            ranked = ranked[:_SIZE]
        kept = tuple(id_ for _, id_ in ranked)
        joined = np.array([rows[id_] for id_ in kept], np.float32).reshape(-1, TEXTURES)
        return replace(self, ids=kept, textures=joined, bound=bound)

    def of_index(self, ids: Collection[str], indexed: int) -> Self:
        """Without those that are not among `ids`, of an index of `indexed` images and videos."""
        kept = [place for place, id_ in enumerate(self.ids) if id_ in ids]
        return replace(
            self,
            ids=tuple(self.ids[place] for place in kept),
            textures=self.textures[kept],
            indexed=indexed,
        )

    @property
    def is_all(self) -> bool:
        """Whether no image was left out."""
        return self.bound == 1.0

    @property
    def is_representative(self) -> bool:
        """Whether it is large enough, and was drawn from nearly all images of the index."""
        drawn_from = len(self.ids) / self.bound
        return len(self.ids) >= _LEAST_IMAGES and drawn_from >= _LEAST_SHARE * self.indexed

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of all of it."""
        digest = hashlib.sha256("\n".join(self.ids).encode())
        digest.update(self.textures.astype("<f2").tobytes())
        digest.update(f"{self.bound} {self.indexed}".encode())
        return digest.hexdigest()[:_FINGERPRINT_DIGITS]

    def to_bytes(self) -> bytes:
        """A NumPy .npz file; textures take half precision."""
        out = io.BytesIO()
        np.savez(
            out,
            ids=np.array(self.ids, np.str_),
            textures=self.textures.astype("<f2"),
            bound=self.bound,
            indexed=self.indexed,
        )
        return out.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """What `to_bytes` made; raises ValueError for anything else."""
        try:
            with np.load(io.BytesIO(content)) as arrays:
                ids, textures, bound, indexed = (
                    arrays[key] for key in ("ids", "textures", "bound", "indexed")
                )
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as exc:
            raise ValueError(f"not a sample: {exc}") from exc
        return cls(tuple(ids.tolist()), textures.astype(np.float32), float(bound), int(indexed))
