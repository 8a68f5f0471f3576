"""An index that is made beside the one in use, and takes its place at once when it is whole.

It is the next generation of files. Until the switch all see the former; after it, who opens the
index gets the new one, and who has the former open goes on reading it. Writers to the former are
told that it was replaced.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from image_search.errors import StoreError
from image_search.manifest import Manifest
from image_search.recipe import Recipe
from image_search.stores.embedded.index import EmbeddedIndex
from image_search.stores.embedded.removal import remove, remove_former

_SECONDS_FOR_WRITERS: Final = 60.0


class Succession:
    """What becomes of `former`; its files are the next generation. Only one process makes it."""

    def __init__(self, former: EmbeddedIndex, most_bytes: int) -> None:
        self.former = former
        self._most_bytes = most_bytes
        self._files = former.files.next()

    def open(self) -> EmbeddedIndex | None:
        """What an earlier run has left unfinished, if there is something. Raises StoreError."""
        with self._files.errors():
            if not self._files.has_table():
                return None
            return EmbeddedIndex.open(self._files, self._files.reading(), self._most_bytes)

    def create(self, manifest: Manifest, recipe: Recipe | None) -> EmbeddedIndex:
        """A new, empty one, in place of what there is. Raises StoreError."""
        with self._files.errors():
            remove(self._files)
            return EmbeddedIndex.create(self._files, manifest, recipe, self._most_bytes)

    @contextmanager
    def writers_waiting(self) -> Iterator[None]:
        """Nobody writes to the former index meanwhile; who wants to, waits. Raises StoreError."""
        deadline = time.monotonic() + _SECONDS_FOR_WRITERS
        while True:
            with self.former.files.nobody_writing() as nobody:
                if nobody:
                    yield
                    return
            if time.monotonic() > deadline:
                raise StoreError(
                    "the index could not be replaced because other processes keep writing to it: "
                    "stop them, and run it again to resume. If there are none, its file system has "
                    "no locks: move the data folder to one that has"
                )

    def put_in_use(self) -> None:
        """Let it take the place of the former, at once and durably; while `writers_waiting`."""
        with self._files.errors():
            self._files.put_in_use()

    def remove_former(self) -> bool:
        """Remove the former, once it is closed, if nobody reads it; returns whether it is gone."""
        return remove_former(self._files)
