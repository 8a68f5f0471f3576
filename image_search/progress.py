"""Progress of a long job: a bar on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from types import TracebackType
from typing import Final, Self

from tqdm import tqdm

_SECONDS_BETWEEN_LINES: Final = 10.0


class Progress:
    """Counts `unit`s up to `total` and shows rate and time left on standard error.

    Safe to use from several threads.
    """

    def __init__(self, description: str, total: int | None, unit: str, *, done: int = 0) -> None:
        self._lock = threading.Lock()
        self._terminal = sys.stderr.isatty()
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        scale = unit == "B"
        self._bar = tqdm(
            desc=description,
            total=total,
            unit=unit if scale else f" {unit}",
            unit_scale=scale,
            initial=done,
            file=sys.stderr if self._terminal else _Nowhere(),
            dynamic_ncols=self._terminal,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def update(self, count: int) -> None:
        """Count `count` more units."""
        with self._lock:
            self._bar.update(count)
            if not self._terminal and time.monotonic() >= self._next_line:
                self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
                self.message(tqdm.format_meter(**{**self._bar.format_dict, "ncols": 0}))

    def note(self, text: str) -> None:
        """Show what is being worked on, beside the count."""
        with self._lock:
            self._bar.set_postfix_str(text, refresh=False)
        self.update(0)

    def message(self, text: str) -> None:
        """Print a line without breaking the bar."""
        tqdm.write(text, file=sys.stderr)


class _Nowhere:
    def write(self, _text: str) -> None: ...

    def flush(self) -> None: ...
