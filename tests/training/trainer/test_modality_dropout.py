"""Modality dropout: rates, the last modality, and the order of segments."""

import pytest
import torch

from vigil_data.loading.batch import Batch, Segments
from vigil_training.trainer.modality_dropout import drop_modalities


def make_batch(count: int) -> Batch:
    """Item ``i`` has two passages, one image if ``i`` is even, one sound if it is divisible by 4."""
    items = torch.arange(count)
    of = {"text": items.repeat_interleave(2), "image": items[::2], "audio": items[::4]}
    segments = {
        m: Segments(item, {"x": item.float()[:, None]}, item % 6, item[:, None] + torch.tensor([0.0, 0.5]))
        for m, item in of.items()
    }
    return Batch(tuple(map(str, items.tolist())), segments, torch.zeros(count, 1))


def test_drop_modalities_hides_at_the_rates_and_never_everything():
    torch.manual_seed(0)
    batch = drop_modalities(make_batch(8000), {"text": 0.5, "image": 0.2})
    present = {m: torch.zeros(8000, dtype=torch.bool).index_fill(0, s.item, True) for m, s in batch.segments.items()}
    assert torch.stack(list(present.values())).any(0).all()
    assert present["text"][1::2].all()  # They have nothing else.
    two = slice(2, None, 4)
    # Hidden alone: .5 * .8 and .2 * .5; both together would leave nothing, so neither is hidden.
    assert (~present["text"][two]).float().mean() == pytest.approx(0.4, abs=0.03)
    assert (~present["image"][two]).float().mean() == pytest.approx(0.1, abs=0.03)
    three = slice(0, None, 4)
    assert (~present["text"][three]).float().mean() == pytest.approx(0.5, abs=0.03)
    assert (~present["image"][three]).float().mean() == pytest.approx(0.2, abs=0.03)
    assert present["audio"][three].all()
    for segments in batch.segments.values():
        assert (segments.item.diff() >= 0).all()
        assert torch.equal(segments.inputs["x"][:, 0], segments.item.float())
        assert torch.equal(segments.role, segments.item % 6)
        assert torch.equal(segments.time, segments.item[:, None] + torch.tensor([0.0, 0.5]))
    texts = batch.segments["text"].item.bincount(minlength=8000)
    assert set(texts.tolist()) == {0, 2}  # All passages of an item, or none.


def test_drop_modalities_of_an_empty_batch():
    batch = drop_modalities(Batch((), {}, torch.zeros(0, 1)), {"text": 0.5})
    assert not batch.segments


def test_drop_modalities_omits_a_modality_without_segments():
    batch = make_batch(5)
    hidden = drop_modalities(batch, {"audio": 0.999999})
    assert "audio" not in hidden.segments
    assert torch.equal(hidden.segments["text"].item, batch.segments["text"].item)
