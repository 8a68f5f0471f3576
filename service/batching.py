"""A stage of work: a queue whose threads each take all that waits, and do it at once."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Stage(Generic[Job]):
    """`threads` threads that hand `work` what waits, at most `max_batch` jobs at a time.

    No job waits for others to come: batches grow while the threads are busy. The queue has no bound
    of its own; who puts jobs in has. When `work` raises, `fail` gets its jobs and the error, and
    the thread goes on; what is no Exception, as SystemExit, ends the thread, until `start`. A job
    may also be done by the thread that brings it; no more than `threads` work at once all the same.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[Job]], None],
        fail: Callable[[list[Job], BaseException], None],
        *,
        threads: int,
        max_batch: int,
    ) -> None:
        self._name = name
        self._work = work
        self._fail = fail
        self._max_batch = max_batch
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._count = threads
        self._threads: list[threading.Thread] = []
        # When each thread that works began with its batch.
        self._since: dict[threading.Thread, float] = {}

    def __len__(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether all threads run."""
        with self._changed:
            return sum(thread.is_alive() for thread in self._threads) == self._count

    def is_stuck(self, seconds: float) -> bool:
        """Whether all threads have worked at one batch each for longer than that."""
        with self._changed:
            latest = time.monotonic() - seconds
            busy = [since for since in self._since.values() if since < latest]
            return len(busy) >= self._count

    def start(self) -> None:
        """Start the threads, or those that have ended."""
        with self._changed:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            while len(self._threads) < self._count:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()
                self._threads.append(thread)

    def close(self) -> None:
        """Wait until the jobs that wait are done and the threads have ended."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def put(self, jobs: Sequence[Job]) -> None:
        """Let jobs wait for the next thread that is free; one takes them together."""
        with self._changed:
            self._waiting.extend(jobs)
            self._changed.notify()

    def put_or_do(self, job: Job, work: Callable[[list[Job]], Result]) -> Result | None:
        """What `work` makes of a job in this thread, where nobody else works; else it waits, None.

        Another thread would have to wake up for it. What is no Exception ends this thread, as it
        ends the stage's own.
        """
        with self._changed:
            if self._waiting or self._since or self._closing:
                self._waiting.append(job)
                self._changed.notify()
                return None
            self._begin()
        try:
            return work([job])
        except Exception as exc:
            self._fail([job], exc)
            return None
        finally:
            self._end()

    @property
    def _all_busy(self) -> bool:
        return len(self._since) >= self._count

    def _begin(self) -> None:
        self._since[threading.current_thread()] = time.monotonic()

    def _end(self) -> None:
        with self._changed:
            self._since.pop(threading.current_thread(), None)
            if self._waiting:
                self._changed.notify()

    def _take(self) -> list[Job]:
        with self._changed:
            while (not self._waiting or self._all_busy) and not self._closing:
                self._changed.wait()
            batch = [self._waiting.popleft() for _ in range(min(len(self), self._max_batch))]
            if self._waiting:
                self._changed.notify()
            self._begin()
            return batch

    def _run(self) -> None:
        while batch := self._take():
            try:
                self._work(batch)
            except Exception as exc:
                self._fail(batch, exc)
            except BaseException as exc:
                with self._changed:
                    self._threads.remove(threading.current_thread())
                self._fail(batch, exc)
                return
            finally:
                self._end()
            # Else an idle thread would keep the last jobs, and all that they refer to.
            del batch
