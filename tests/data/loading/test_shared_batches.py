"""Batches in shared slots are the batches that were put there, for as long as anything of them is held."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.loading import shared_batches
from vigil_data.loading.batch import Batch, Segments
from vigil_data.loading.shared_batches import SLOTS, SharedBatches

DTYPES = (torch.uint8, torch.int64, torch.float32, torch.bool)


def batch(seed: int, segments: int = 3, shape: tuple[int, ...] = (2, 3), dtype: torch.dtype = torch.uint8) -> Batch:
    random = torch.Generator().manual_seed(seed)

    def numbers(*size: int) -> torch.Tensor:
        return torch.randint(0, 2, size, generator=random)

    of = Segments(numbers(segments), {"x": numbers(segments, *shape).to(dtype)}, numbers(segments), numbers(segments, 2).float())
    group = numbers(4) if seed % 2 else None
    spans = numbers(segments, 4, 2).float() if seed % 3 == 0 else None
    return Batch(("a", "b", "c", "d"), {"image": of}, numbers(4, 5).float(), 0.5, (), group, spans=spans)


def tensors(of: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    of.map(lambda tensor: found.append(tensor) or tensor)
    return found


def assert_equal(first: Batch, second: Batch) -> None:
    assert (first.ids, first.share, first.refused, set(first.segments)) == (second.ids, second.share, second.refused, {"image"})
    for one, other in zip(tensors(first), tensors(second), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.fixture(autouse=True)
def worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places are taken as by the second of two workers."""
    monkeypatch.setattr(shared_batches, "get_worker_info", lambda: SimpleNamespace(id=1))


def sent(shared: SharedBatches, one: Batch) -> Batch:
    message = shared.place(one)
    assert not isinstance(message, Batch)
    data = pickle.dumps(message)
    assert len(data) < 2000, "tensors are not in the message"
    received: Batch = pickle.loads(data)
    return received


@settings(deadline=None)
@given(
    seed=st.integers(0, 9),
    segments=st.integers(0, 5),
    shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    dtype=st.sampled_from(DTYPES),
)
def test_shared_batches_return_what_was_placed(seed, segments, shape, dtype):
    shared, one = SharedBatches(2), batch(seed, segments, shape, dtype)
    assert_equal(sent(shared, one), one)


def test_shared_batches_use_a_slot_again_only_when_nothing_of_its_batch_is_held():
    shared = SharedBatches(2)
    held = [sent(shared, batch(seed)) for seed in range(SLOTS)]
    spare = batch(99)
    assert shared.place(spare) is spare, "no slot is free, so the batch is sent by itself"
    for seed, one in enumerate(held):
        assert_equal(one, batch(seed))
    pixels = held[2].segments["image"].inputs["x"].numpy()[1:]  # a view outlives its batch
    targets = held[3].targets
    del held[2:4]
    assert_equal(sent(shared, batch(5)), batch(5))
    again = [sent(shared, batch(7))]
    assert shared.place(spare) is spare, "the slot of the view is still in use, that of the targets is not"
    assert np.array_equal(pixels, batch(2).segments["image"].inputs["x"].numpy()[1:])
    assert torch.equal(targets, batch(3).targets)
    del pixels
    again.append(sent(shared, batch(8)))
    for one, seed in zip((*held, *again), (0, 1, 4, 5, 7, 8), strict=True):
        assert_equal(one, batch(seed))


def test_shared_batches_send_a_batch_larger_than_a_slot_by_itself(monkeypatch):
    monkeypatch.setattr(shared_batches, "SLOT_BYTES", 4096)
    shared, large = SharedBatches(2), batch(0, 9, (500,))
    assert shared.place(large) is large
    assert_equal(sent(shared, batch(1)), batch(1))


def test_shared_batches_outlive_their_loader():
    one = sent(SharedBatches(2), batch(4))
    assert_equal(one, batch(4))
