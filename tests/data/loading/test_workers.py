"""The number of workers follows the measured times, and does not change what is read."""

from functools import partial

import numpy as np
import pytest

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.items import Item
from vigil_data.loading.loader import Reader, TrainingLoader, resumed_resizes
from vigil_data.loading.sampler import Resize, plan, plan_resized
from vigil_data.loading.workers import WorkerChoice, choose_workers, evaluation_workers
from vigil_data.specs import BatchPlan, BlockShuffle, Inputs

SPEC = BatchPlan(budget=4, pool=2)


@pytest.mark.parametrize(
    ("decode", "step", "cores", "workers"),
    [
        (0.001, 1.0, 8, 0),
        (0.03, 1.0, 8, 1),
        (0.8, 1.0, 8, 1),
        (1.0, 1.0, 8, 2),
        (4.0, 1.0, 8, 5),
        (4.0, 1.0, 2, 2),
        (1.0, 0.0, 4, 4),
    ],
)
def test_choose_workers_decodes_faster_than_training(decode, step, cores, workers):
    assert choose_workers(decode, step, cores) == workers


def test_evaluation_workers_are_not_started_for_few_batches():
    assert evaluation_workers("auto", 7) == 0
    assert evaluation_workers("auto", 10_000, local_ranks=10_000) == 1
    assert evaluation_workers(3, 1) == 3


def test_worker_choice_takes_one_more_after_an_epoch_that_waited():
    choice = WorkerChoice(cores=2)
    assert not choice.revise(0.5)  # nothing is known yet
    for _ in range(5):
        choice.add(0.5, 1.0)
    assert choice.workers == 1
    assert not choice.revise(0.01)
    assert choice.revise(0.1)
    assert choice.workers == 2
    assert not choice.revise(0.1)  # no more cores


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    path = tmp_path_factory.mktemp("workers") / "dataset"
    write(path, [Item(f"i{n}", (f"text {n}",), targets={"a": float(n % 2)}) for n in range(60)])
    return Reader(path, Dataset(path).version, Inputs.model_validate({"image": {"size": 16}}), ("a",))


def test_training_loader_with_a_choice_reads_the_same_batches(reader):
    make = partial(plan, np.ones(60), SPEC, 3)
    rows = np.arange(60)
    expected = [batch.ids for batch in TrainingLoader(reader, rows, np.ones(60), make)]
    choice = WorkerChoice(cores=0)  # whatever is measured, no process is started
    loader = TrainingLoader(reader, rows, np.ones(60), make, workers=choice)
    assert [batch.ids for batch in loader] == expected
    assert choice.workers == loader.workers == 0
    assert 0 < loader.waited_seconds < loader.seconds


def test_training_loader_reads_the_same_items_by_blocks(reader):
    shuffle = BlockShuffle(block=7, window=2, streams=2)
    make = partial(plan, np.ones(60), SPEC, 3, shuffle=shuffle, rows=np.arange(60))
    by_block = Reader(reader.path, reader.version, reader.inputs, reader.labels, shuffle=shuffle)
    loaders = [TrainingLoader(of, np.arange(60), np.ones(60), make) for of in (reader, by_block)]
    for expected, found in zip(*loaders, strict=True):
        assert found.ids == expected.ids
        assert found.targets.tolist() == expected.targets.tolist()


def test_training_loader_continues_with_other_ranks(reader):
    prices, rows = np.ones(60), np.arange(60)
    read = []
    first = [TrainingLoader(reader, rows, prices, lambda epoch: plan(prices, SPEC, 3, epoch, 2), rank=rank) for rank in (0, 1)]
    for loader in first:
        batches = iter(loader)
        read += [next(batches).ids for _ in range(3)]
    state = first[0].state_dict()
    resizes = resumed_resizes(state, 1)
    assert resizes == [Resize(0, 3, 2)]

    def make(epoch):
        return plan_resized(lambda e, world: plan(prices, SPEC, 3, e, world), prices, 3, epoch, world=1, resizes=resizes)

    resumed = TrainingLoader(reader, rows, prices, make, resizes=resizes)
    resumed.load_state_dict(state)
    read += [batch.ids for batch in resumed]
    assert sorted(sum(read, ())) == sorted(f"i{n}" for n in rows)
    assert resumed_resizes(resumed.state_dict(), 1) == resizes
