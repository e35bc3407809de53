"""Batcher: each request gets its own decisions, waiting is bounded, and a failing item fails only its request."""

import asyncio
import logging
import threading

import pytest

from vigil_data.items import Item
from vigil_serving.protocol.errors import RequestError
from vigil_serving.server.batching import Batcher, ScoringError
from vigil_serving.server.metrics import ServerMetrics
from vigil_serving.server.model_manager import LoadedBundle

from .conftest import FakeScorer, number, until

DEFAULTS = {"max_batch": 8, "max_wait": 0.005, "queue": 64, "workers": 2}


def run(work, scorer: FakeScorer, tmp_path, **settings):
    """Run ``work(batcher)`` in an event loop."""

    async def main():
        loaded = LoadedBundle(tmp_path, scorer)
        batcher = Batcher(lambda: loaded, ServerMetrics(), **DEFAULTS | settings)
        batcher.start()
        try:
            return await work(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(main())


def of(*names: str) -> list[Item]:
    return [Item(name) for name in names]


def test_batcher_returns_each_request_its_decisions_in_order(tmp_path) -> None:
    scorer = FakeScorer(seconds=0.002)
    requests = [[f"r{n}-{k}" for k in range(1 + n % 5)] for n in range(200)]

    async def work(batcher: Batcher):
        return await asyncio.gather(*(batcher.submit(of(*names)) for names in requests))

    answers = run(work, scorer, tmp_path, queue=10_000)
    for names, answer in zip(requests, answers, strict=True):
        assert [decision.id for decision in answer.decisions] == names
        assert [decision.probabilities["scam"] for decision in answer.decisions] == [number(name) for name in names]
    assert all(len(call) <= 8 for call in scorer.calls)
    assert sum(map(len, scorer.calls)) == sum(map(len, requests))
    assert len(scorer.calls) < 100, "requests were scored together"


def test_batcher_scores_a_request_larger_than_a_batch_as_one_batch(tmp_path) -> None:
    names = [str(n) for n in range(20)]
    scorer = FakeScorer()
    answer = run(lambda batcher: batcher.submit(of(*names)), scorer, tmp_path)
    assert [decision.id for decision in answer.decisions] == names
    assert scorer.calls == [names]


def test_batcher_waits_for_more_items_up_to_max_wait(tmp_path) -> None:
    scorer = FakeScorer()

    async def work(batcher: Batcher):
        first = asyncio.create_task(batcher.submit(of("a")))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(batcher.submit(of("b")))
        await asyncio.gather(first, second)
        await batcher.submit(of("c"))

    run(work, scorer, tmp_path, max_wait=0.2)
    assert scorer.calls == [["a", "b"], ["c"]]


def test_batcher_refuses_at_once_if_the_queue_is_full(tmp_path) -> None:
    scorer = FakeScorer()
    scorer.go.clear()

    async def work(batcher: Batcher):
        running = [asyncio.create_task(batcher.submit(of(f"x{n}"))) for n in range(2)]
        await until(lambda: len(scorer.calls) == 2)
        waiting = [asyncio.create_task(batcher.submit(of(f"y{n}"))) for n in range(4)]
        await until(lambda: batcher.full)
        with pytest.raises(RequestError) as refused:  # while the scorer is blocked, so it cannot have waited for room
            await asyncio.wait_for(batcher.submit(of("one too many")), 5)
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "1")
        scorer.go.set()
        answers = await asyncio.gather(*running, *waiting)
        assert batcher.waiting == 0
        return [answer.decisions[0].id for answer in answers]

    assert run(work, scorer, tmp_path, queue=4, max_batch=1) == ["x0", "x1", "y0", "y1", "y2", "y3"]


def test_batcher_fails_only_the_request_with_the_failing_item_and_logs_no_content(
    tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = FakeScorer()
    names = [["a"], ["b", "poison", "c"], ["d", "e"]]

    async def work(batcher: Batcher):
        gathered = await asyncio.gather(*(batcher.submit(of(*n)) for n in names), return_exceptions=True)
        again = await batcher.submit(of("later"))
        return [*gathered, again]

    logging.getLogger("vigil.serve").propagate = True
    first, failing, third, later = run(work, scorer, tmp_path, max_wait=0.1)
    assert isinstance(failing, ScoringError)
    assert failing.index == 1
    assert [d.id for answer in (first, third, later) for d in answer.decisions] == ["a", "d", "e", "later"]
    assert "RuntimeError at" in caplog.text
    assert "secret" not in caplog.text


def test_batcher_removes_cancelled_requests_from_the_queue(tmp_path) -> None:
    scorer = FakeScorer()
    scorer.go.clear()

    async def work(batcher: Batcher):
        running = asyncio.create_task(batcher.submit(of("running")))
        await until(lambda: scorer.calls != [])
        leaving, staying = (asyncio.create_task(batcher.submit(of(name))) for name in ("leaving", "staying"))
        await until(lambda: batcher.waiting == 2)
        leaving.cancel()
        await until(lambda: batcher.waiting == 1)
        running.cancel()  # is being scored: the others must not notice
        scorer.go.set()
        return (await staying).decisions[0].id

    assert run(work, scorer, tmp_path, workers=1) == "staying"
    assert ["leaving"] not in scorer.calls
    assert not any("leaving" in call for call in scorer.calls)


def test_batcher_does_not_block_the_event_loop(tmp_path) -> None:
    scorer = FakeScorer()
    scorer.go.clear()
    threads: set[int] = set()
    score = scorer.score
    scorer.score = lambda items: (threads.add(threading.get_ident()), score(items))[1]

    async def work(batcher: Batcher):
        scoring = asyncio.create_task(batcher.submit(of("a")))
        await until(lambda: scorer.calls != [])
        for _ in range(20):  # the loop runs while the scorer is blocked
            await asyncio.sleep(0.001)
        scorer.go.set()
        return (await scoring).decisions[0].id

    assert run(work, scorer, tmp_path) == "a"
    assert threads
    assert threading.get_ident() not in threads


def test_batcher_scores_each_request_with_one_bundle(tmp_path) -> None:
    loaded = [LoadedBundle(tmp_path, FakeScorer(digest=c * 64)) for c in "ab"]
    turn = iter(range(1_000_000))

    async def main():
        batcher = Batcher(lambda: loaded[next(turn) % 2], ServerMetrics(), **DEFAULTS | {"queue": 1000})
        batcher.start()
        answers = await asyncio.gather(*(batcher.submit(of("a", "b")) for _ in range(100)))
        await batcher.stop()
        return {answer.loaded.digest[0] for answer in answers}

    assert asyncio.run(main()) == {"a", "b"}
    for of_one in loaded:
        assert all(len(call) % 2 == 0 for call in of_one.scorer.calls)
