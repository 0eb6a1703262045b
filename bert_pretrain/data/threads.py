"""Work of threads, a little ahead of whoever reads what comes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    num_threads: int,
    num_ahead: int,
) -> Iterator[Result]:
    """Yield the result of each item, in order, while threads work on the following ones.

    Items are asked for by the caller's thread. At most `num_ahead` + 1 of them are under way, so
    memory is bounded. It serves functions that release the interpreter's lock, as decoders and
    tokenizers do; an error of one is raised at its place.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > num_ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
