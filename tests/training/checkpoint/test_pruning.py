"""Pruning of feed-forward layers: neurons without effect go, the function stays, and other shapes are left to the caller."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vigil_training.checkpoint.pruning import prune_feed_forward


class Block(nn.Module):
    """A feed-forward layer with or without a gate."""

    def __init__(self, hidden, gated):
        super().__init__()
        self.up, self.down = nn.Linear(4, hidden), nn.Linear(hidden, 4)
        self.gate = nn.Linear(4, hidden, bias=False) if gated else None

    def forward(self, values):
        hidden = torch.relu(self.up(values))
        return self.down(hidden if self.gate is None else hidden * self.gate(values))


def differing(wide, narrow):
    theirs, ours = wide.state_dict(), narrow.state_dict()
    names = [name for name in ours if theirs[name].shape != ours[name].shape]
    return {name: theirs[name] for name in names}, {name: ours[name].shape for name in names}


@given(st.integers(0, 2**31), st.booleans(), st.sampled_from(["up", "down"]))
def test_neurons_without_effect_are_pruned_and_the_function_stays(seed, gated, silenced):
    torch.manual_seed(seed)
    wide, narrow = (nn.ModuleDict({"blocks": nn.Sequential(Block(n, gated), Block(n, gated))}) for n in (9, 5))
    for block in wide["blocks"]:
        idle = torch.randperm(9)[:4]
        with torch.no_grad():
            if silenced == "down":
                block.down.weight[:, idle] = 0
            else:
                block.up.weight[idle] = 0
                block.up.bias[idle] = 0
    pruned = prune_feed_forward(*differing(wide, narrow))
    narrow.load_state_dict(wide.state_dict() | pruned)
    values = torch.randn(7, 4)
    torch.testing.assert_close(narrow["blocks"](values), wide["blocks"](values))


@pytest.mark.parametrize(
    ("wide", "shapes"),
    [
        ({"a.0.up.weight": (9, 4), "a.0.down.weight": (4, 9)}, {"a.0.up.weight": (5, 4), "a.0.down.weight": (4, 6)}),
        ({"a.0.up.weight": (5, 4), "a.0.down.weight": (4, 5)}, {"a.0.up.weight": (9, 4), "a.0.down.weight": (4, 9)}),
        ({"a.0.up.weight": (9, 4)}, {"a.0.up.weight": (5, 4)}),
        ({"a.0.up.weight": (9, 4), "a.0.down.weight": (3, 9)}, {"a.0.up.weight": (5, 4), "a.0.down.weight": (4, 5)}),
        ({"words.weight": (9, 4), "positions.weight": (4, 9)}, {"words.weight": (5, 4), "positions.weight": (4, 5)}),
    ],
    ids=["unequal sizes", "wider than the source", "one side alone", "another width", "outside of blocks"],
)
def test_other_shapes_are_left_out(wide, shapes):
    assert prune_feed_forward({name: torch.ones(shape) for name, shape in wide.items()}, shapes) == {}
