"""What the synchronous client needs of its surroundings; `aio` has the same for the other."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from time import sleep
from typing import ParamSpec, TypeVar

__all__ = ["in_thread", "map_ordered", "sleep"]

Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_thread(
    function: Callable[Arguments, Result],
    /,
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Result:
    """Call the function, in the thread that this already is."""
    return function(*args, **kwargs)


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], concurrency: int
) -> Generator[Result, None, None]:
    """The results in the items' order, with at most `concurrency` calls at once.

    Only as many items as twice that are taken ahead. The first error ends it, and is raised. To
    close it waits for the calls that have begun.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(concurrency, thread_name_prefix="image-search") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= 2 * concurrency:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
