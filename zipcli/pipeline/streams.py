"""Bounded streams: work in threads that stays in order, and images collected into batches."""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

from zipcli.pipeline.outcome import Outcome

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(
    pool: Executor,
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    cost: Callable[[T], int],
    budget: int,
    most: int = 512,
) -> Iterator[R]:
    """Apply a function in the threads of `pool` to items ahead of the one asked for, in order.

    Args:
        pool: Where to work.
        function: What to apply; it must not raise but for errors that end the run.
        items: Pulled only as far as the budget allows.
        cost: Memory that an item in flight stands for, in the unit of the budget.
        budget: Most memory in flight; a single item may exceed it.
        most: Most items in flight.
    """
    pending: deque[tuple[Future[R], int]] = deque()
    in_flight = 0
    for item in items:
        price = cost(item)
        while pending and (in_flight + price > budget or len(pending) >= most):
            future, paid = pending.popleft()
            in_flight -= paid
            yield future.result()
        pending.append((pool.submit(function, item), price))
        in_flight += price
        while pending and pending[0][0].done():  # do not sit on results that are ready
            future, paid = pending.popleft()
            in_flight -= paid
            yield future.result()
    while pending:
        yield pending.popleft()[0].result()


def batched_by(
    items: Iterable[T],
    *,
    key: Callable[[T], Hashable],
    count: Callable[[T], int],
    cost: Callable[[T], int],
    budget: int,
) -> Iterator[list[T]]:
    """Collect items of one key into batches; full ones come out at once.

    Args:
        items: What to collect.
        key: Items of different keys never share a batch.
        count: Size of a full batch for the key of an item.
        cost: Memory that an item stands for.
        budget: Most memory to hold back; beyond it the batch that has waited longest comes out.
    """
    waiting: OrderedDict[Hashable, list[T]] = OrderedDict()
    held = 0
    for item in items:
        batch = waiting.setdefault(key(item), [])
        batch.append(item)
        held += cost(item)
        full = len(batch) >= count(item)
        while waiting and (full or held > budget):
            _, ready = (key(item), waiting.pop(key(item))) if full else waiting.popitem(last=False)
            held -= sum(map(cost, ready))
            full = False
            yield ready
    yield from waiting.values()


def map_through(
    pool: Executor,
    function: Callable[[T], R],
    items: Iterable[T | Outcome],
    *,
    cost: Callable[[T], int],
    budget: int,
) -> Iterator[R | Outcome]:
    """`map_ahead` over a stream in which some images have ended: their outcomes pass unchanged."""
    return map_ahead(
        pool,
        lambda item: item if isinstance(item, Outcome) else function(item),
        items,
        cost=lambda item: 0 if isinstance(item, Outcome) else cost(item),
        budget=budget,
    )
