"""One part of a source for each of several workers, which need to know nothing of each other."""

import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from image_search.errors import IndexNotFoundError, SettingsError, StoreError
from image_search.index import VectorIndex
from image_search.settings import Settings
from image_search.stores import open_index

# Who starts the workers numbers them: of these variables, the first has the number and the second
# the count. Slurm sets both: https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES
# Kubernetes sets the first, and a job's manifest the second:
# https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode
_VARIABLES: Final = (
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
)
# A new index is fitted to at most 10,000 images, which takes minutes on a few cores.
_MOST_SECONDS: Final = 3600.0
_SECONDS_BETWEEN_LOOKS: Final = 1.0


@dataclass(frozen=True)
class Shard:
    """The part `number`, from 0, of `count`; `told_by` says who chose it, if no option did."""

    number: int
    count: int
    told_by: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `--shard` takes; raises ValueError."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None:
            raise ValueError(f"{text!r} is not I/N, such as 0/4")
        number, count = map(int, found.groups())
        if number >= count:
            raise ValueError(f"{text} is no shard: they are 0/{count} to {count - 1}/{count}")
        return cls(number, count)

    @classmethod
    def of_environment(cls, environ: Mapping[str, str] = os.environ) -> Self | None:
        """What Slurm or Kubernetes has set; None where there is one worker.

        Raises SettingsError.
        """
        for number, count in _VARIABLES:
            if number in environ and count in environ:
                names = f"{number} and {count}"
                try:
                    shard = cls.parse(f"{environ[number]}/{environ[count]}")
                except ValueError as exc:
                    raise SettingsError(f"{names}: {exc}; or choose with --shard") from exc
                return cls(shard.number, shard.count, names) if shard.count > 1 else None
        return None

    @property
    def creates_index(self) -> bool:
        """Whether a new index is this shard's to create; the others wait for it."""
        return self.number == 0

    def wait_for_index(self, settings: Settings, stop: threading.Event) -> VectorIndex | None:
        """The index, once the first shard has created it; None when `stop` was set meanwhile.

        Raises StoreError if that takes more than an hour.
        """
        deadline = time.monotonic() + _MOST_SECONDS
        is_told = False
        while not stop.is_set():
            try:
                return open_index(settings)
            except IndexNotFoundError as exc:
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"shard 0 of {self.count} has not created the index within an hour: see "
                        "what it says, then run this shard again"
                    ) from exc
            if not is_told:
                print(f"waiting for shard 0 of {self.count}, which creates the index", flush=True)
                is_told = True
            stop.wait(_SECONDS_BETWEEN_LOOKS)
        return None

    def __str__(self) -> str:
        return f"shard {self.number} of {self.count}"
