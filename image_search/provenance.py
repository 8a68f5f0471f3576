"""Where the images of an index came from, and which were deleted; kept beside the index."""

from datetime import datetime
from typing import Final

from pydantic import BaseModel, ConfigDict, model_validator

# So many of the images that were deleted last are remembered.
MOST_DELETIONS: Final = 100_000


class KnownSource(BaseModel):
    """A source that images were ingested from.

    `place` is its path or address; empty for data sets that are made or downloaded. `prefix` is
    what the ids of its images begin with; empty in indexes of earlier versions. `ingested_at` is
    when the last ingest that ran to its end did so; None before.

    A part that a worker of several ingests has an entry of its own: `shard` says which, I/N, and
    `change` is another text whenever images of it may have been added. The source's entry has in
    `settled` the changes of its parts that the index's confidences know.
    """

    model_config = ConfigDict(frozen=True)

    place: str = ""
    prefix: str = ""
    ingested_at: datetime | None = None
    shard: str = ""
    change: str = ""
    settled: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, value: object) -> object:
        """Earlier versions kept the place alone."""
        return {"place": value} if isinstance(value, str) else value
