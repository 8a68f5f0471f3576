"""What the asynchronous client needs of its surroundings; `threads` has the same for the other."""

import asyncio
from asyncio import sleep, to_thread
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

__all__ = ["in_thread", "map_ordered", "sleep"]

Item = TypeVar("Item")
Result = TypeVar("Result")

in_thread = to_thread


async def map_ordered(
    function: Callable[[Item], Awaitable[Result]], items: Iterable[Item], concurrency: int
) -> AsyncIterator[Result]:
    """The results in the items' order, with at most `concurrency` calls at once.

    Only as many items as twice that are taken ahead. The first error ends it, and is raised.
    """
    free = asyncio.Semaphore(concurrency)

    async def call(item: Item) -> Result:
        async with free:
            return await function(item)

    pending: deque[asyncio.Task[Result]] = deque()
    try:
        for item in items:
            pending.append(asyncio.create_task(call(item)))
            if len(pending) >= 2 * concurrency:
                yield await pending.popleft()
        while pending:
            yield await pending.popleft()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
