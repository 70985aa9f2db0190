"""Bounded streams: work in threads that stays in order, and images collected into batches."""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

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


class Batches(Generic[T]):
    """Collects items of one key into batches; holds back no more than a budget of memory."""

    def __init__(
        self,
        *,
        key: Callable[[T], Hashable],
        count: Callable[[T], int],
        cost: Callable[[T], int],
        budget: int,
    ) -> None:
        """Say how to batch.

        Args:
            key: Items of different keys never share a batch.
            count: Size of a full batch for the key of an item.
            cost: Memory that an item stands for.
            budget: Most memory to hold back; beyond it the batch that has waited longest comes out.
        """
        self._key, self._count, self._cost, self._budget = key, count, cost, budget
        self._waiting: OrderedDict[Hashable, list[T]] = OrderedDict()
        self._held = 0

    def add(self, item: T) -> Iterator[list[T]]:
        """Take an item, and yield the batches that are due."""
        key = self._key(item)
        batch = self._waiting.setdefault(key, [])
        batch.append(item)
        self._held += self._cost(item)
        if len(batch) >= self._count(item):
            yield self._take(key)
        while self._waiting and self._held > self._budget:
            yield self._take(next(iter(self._waiting)))

    def rest(self) -> Iterator[list[T]]:
        """Yield what is left, full or not."""
        while self._waiting:
            yield self._take(next(iter(self._waiting)))

    def _take(self, key: Hashable) -> list[T]:
        batch = self._waiting.pop(key)
        self._held -= sum(map(self._cost, batch))
        return batch


class Room:
    """How many items of a key fit into one batch, as far as the device has told.

    Others may use the device, too: what was too much once is tried again after a while.
    """

    CALM = 16
    """Batches that must fit before a larger one is tried."""

    def __init__(self) -> None:
        """Know nothing."""
        self._most: dict[Hashable, int] = {}
        self._fitted: Counter[Hashable] = Counter()

    def limit(self, key: Hashable, wanted: int) -> int:
        """The size of the next batch: what is wanted, or what fits."""
        return min(wanted, self._most.get(key, wanted))

    def exceeded(self, key: Hashable, count: int) -> None:
        """A batch of `count` was too large."""
        self._most[key] = max(1, count // 2)
        self._fitted[key] = 0

    def fitted(self, key: Hashable) -> None:
        """A batch was not too large."""
        if key in self._most:
            self._fitted[key] += 1
            if self._fitted[key] >= self.CALM:
                self._most[key] *= 2
                self._fitted[key] = 0


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
