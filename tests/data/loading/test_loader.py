"""The loader: the same batches from any place in an epoch and with any number of workers, each with its share of the loss."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.dataset.dataset import write
from vigil_data.items import Item
from vigil_data.loading.loader import Reader, Request, TrainingLoader, evaluation_loader
from vigil_data.loading.sampler import costs, plan
from vigil_data.specs import BatchPlan, Cost, Inputs

SPEC = BatchPlan(budget=60, cost=Cost(character=1), pool=2)
INPUTS = Inputs.model_validate({"image": {"size": 16}})
TEXT = Inputs.model_validate({"text": {"tokenizer": {"kind": "local", "path": "tokenizer.json"}}})
"""What costs: the items have texts alone."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    path = tmp_path_factory.mktemp("loader") / "dataset"
    random = np.random.default_rng(0)
    write(
        path,
        [Item(f"i{n}", ("x" * int(random.integers(1, 30)),), (), (), {"a": float(n % 2)}, {"split": "train"}) for n in range(40)],
    )
    from vigil_data.dataset.dataset import Dataset

    return Reader(path, Dataset(path).version, INPUTS, ("a", "b"))


def make(reader, **options):
    from vigil_data.dataset.dataset import Dataset

    dataset = Dataset(reader.path)
    prices = costs(dataset.facts(), SPEC.cost, TEXT)
    return TrainingLoader(reader, dataset.rows(), np.ones(40), partial(plan, prices, SPEC, 5), **options)


def ids(batches):
    return [batch.ids for batch in batches]


def test_training_loader_epoch_has_every_item_once_in_a_new_order(reader):
    loader = make(reader)
    first = ids(loader)
    loader.set_epoch(1)
    second = ids(loader)
    assert sorted(sum(first, ())) == sorted(sum(second, ())) == sorted(f"i{n}" for n in range(40))
    assert first != second
    assert len(first) > 5


def test_training_loader_resumes_from_its_state(reader):
    loader = make(reader)
    loader.set_epoch(2)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    state = loader.state_dict()
    rest = ids(batches)
    resumed = make(reader)
    resumed.load_state_dict(state)
    resumed.set_epoch(2)
    assert ids(resumed) == rest
    assert len(resumed) == len(rest) + 3


def test_training_loader_batches_do_not_depend_on_workers(reader):
    alone, helped = make(reader), make(reader, workers=2)
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        helped.set_epoch(epoch)
        for expected, found in zip(alone, helped, strict=True):
            assert expected.ids == found.ids
            assert expected.share == found.share
            assert torch.allclose(expected.targets, found.targets, equal_nan=True)


def test_training_loader_iterators_draw_no_random_numbers(reader):
    loader = make(reader)
    before = torch.get_rng_state()
    iter(loader)
    list(loader)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("name", "value"), [("world", 2), ("accumulate", 4)])
def test_training_loader_refuses_a_state_of_another_plan(name, value, reader):
    loader = make(reader)
    with pytest.raises(ValueError, match=f"written with {name} {value}, not 1"):
        loader.load_state_dict({**loader.state_dict(), name: value})


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0.1, 3), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(1, 3),
    st.floats(1, 20),
)
def test_training_loader_shares_of_a_step_make_one_mean(weights, accumulate, world, budget):
    """Lightning divides by ``accumulate``, DDP by ``world``; then each known target weighs the same, in a short group as well."""
    spec, weights = BatchPlan(budget=budget), np.array(weights)
    made = plan(np.ones(len(weights)), spec, 0, 0, world)
    reader, rows = Reader(None, None, INPUTS, ()), np.arange(len(weights))
    loaders = [TrainingLoader(reader, rows, weights, lambda _: made, rank=rank, accumulate=accumulate) for rank in range(world)]
    for first in range(0, made.steps, accumulate):
        group = range(first, min(first + accumulate, made.steps))
        shares = {loader.share(step) / accumulate / world for step in group for loader in loaders}
        total = sum(weights[made.rows(step, rank)].sum() for step in group for rank in range(world))
        assert len(shares) == 1
        assert shares.pop() == pytest.approx(1 / total)


def test_training_loader_gives_an_empty_batch_if_nothing_can_be_decoded(tmp_path):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.effect_noise((40, 40), 50).save(file, "PNG")
    path = tmp_path / "dataset"
    # The header is whole, so it is let in; the rest is cut off.
    write(path, [Item("cut", (), (file.getvalue()[:200],), (), {"a": 1.0})])
    batch = Reader(path, None, INPUTS, ("a", "b"))[Request(np.array([0]), 0.5)]
    assert batch.ids == ()
    assert batch.targets.shape == (0, 2)
    assert [refusal.id for refusal in batch.refused] == ["cut"]


def test_evaluation_loader_reads_every_row_once(reader):
    from vigil_data.dataset.dataset import Dataset

    prices = costs(Dataset(reader.path).facts(), SPEC.cost, TEXT)
    loader = evaluation_loader(reader, np.arange(40), prices, SPEC)
    assert ids(loader) == ids(loader)
    assert sorted(sum(ids(loader), ())) == sorted(f"i{n}" for n in range(40))
    assert all(batch.share is None for batch in loader)


def test_reader_gives_each_item_that_is_decoded_its_group(tmp_path):
    import io

    from PIL import Image

    from vigil_data.dataset.dataset import Dataset

    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "PNG")
    whole, cut = file.getvalue(), file.getvalue()[:3000]
    write(tmp_path / "d", [Item(f"i{n}", (), (cut if n == 1 else whole,), (), {"a": 1.0}) for n in range(4)])
    reader = Reader(tmp_path / "d", Dataset(tmp_path / "d").version, INPUTS, ("a",))
    batch = reader[Request(np.array([3, 1, 0]), 1.0, 0, np.array([7, 8, 9]))]
    assert batch.ids == ("i3", "i0")
    assert batch.group.tolist() == [7, 9]
    assert batch.to("cpu").group.tolist() == [7, 9]
    assert reader[Request(np.array([0]))].group is None


def test_training_loader_requests_the_group_of_each_row_and_the_epoch(reader):
    groups = np.arange(40) * 10
    loader = make(reader, groups=groups)
    loader.set_epoch(3)
    requests = list(loader.requests())
    assert all(np.array_equal(request.groups, request.rows * 10) for request in requests)
    assert {request.epoch for request in requests} == {3}
