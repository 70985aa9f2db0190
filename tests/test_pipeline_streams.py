"""Bounded streams."""

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from zipcli.pipeline.streams import Batches, map_ahead


def test_results_come_in_order() -> None:
    with ThreadPoolExecutor(4) as pool:
        slow_first = map_ahead(
            pool, lambda n: time.sleep(0.02 if n == 0 else 0) or n, range(20), cost=lambda _: 1, budget=5
        )
        assert list(slow_first) == list(range(20))


def test_no_more_is_pulled_than_the_budget_allows() -> None:
    pulled = []

    def items() -> Iterator[int]:
        for n in range(100):
            pulled.append(n)
            yield n

    gate = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        results = map_ahead(pool, lambda n: gate.wait(10) and n, items(), cost=lambda _: 3, budget=12)
        threading.Timer(0.1, gate.set).start()
        assert next(results) == 0
        assert len(pulled) <= 6
        assert list(results) == list(range(1, 100))


def test_a_single_item_beyond_the_budget_still_passes() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert list(map_ahead(pool, str, [1, 2], cost=lambda _: 99, budget=10)) == ["1", "2"]


def batched(items: Iterable[Any], **rules: Any) -> Iterator[list[Any]]:
    batches: Batches[Any] = Batches(**rules)
    for item in items:
        yield from batches.add(item)
    yield from batches.rest()


def test_batches_hold_one_key_and_come_out_when_full() -> None:
    batches = batched(
        "aababbbac", key=str, count=lambda key: 3 if key == "a" else 2, cost=lambda _: 1, budget=100
    )
    assert ["".join(batch) for batch in batches] == ["aaa", "bb", "bb", "a", "c"]


def test_rare_keys_do_not_wait_for_ever() -> None:
    batches: Batches[int] = Batches(key=lambda n: n, count=lambda _: 64, cost=lambda _: 1, budget=10)
    out = [list(batches.add(n)) for n in range(100)]
    assert out[9] == []
    assert out[10:] == [[[n]] for n in range(90)]
    assert list(batches.rest()) == [[n] for n in range(90, 100)]


def test_nothing_is_lost() -> None:
    items = [(n * 7919) % 13 for n in range(500)]
    batches = batched(items, key=lambda n: n, count=lambda n: n + 1, cost=lambda n: n, budget=40)
    assert sorted(x for batch in batches for x in batch) == sorted(items)
