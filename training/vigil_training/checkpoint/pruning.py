"""Pruning of feed-forward layers: which hidden neurons of a wider layer a narrower one starts from."""

import math
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

BLOCK = re.compile(r".*\.\d+\.")
"""Beginning of the name of a tensor in a numbered block."""


def prune_feed_forward(wide: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Take the largest hidden neurons of each block whose feed-forward layers are narrower than the source's.

    A neuron is as large as the product of the L2 norms of its weights in each layer: magnitude pruning of whole neurons, see
    Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1.

    Args:
        wide: name to tensor of the source, those alone whose shapes differ.
        shapes: name to shape in the new model.

    Returns:
        Name to pruned tensor; without the tensors that are not layers before and after the same hidden neurons of a block.
    """
    blocks: dict[str, list[str]] = {}
    for name in wide:
        if block := BLOCK.match(name):
            blocks.setdefault(block[0], []).append(name)
    pruned: dict[str, Tensor] = {}
    for names in blocks.values():
        before = [name for name in names if wide[name].shape[1:] == tuple(shapes[name][1:])]
        after = [name for name in names if wide[name].ndim == 2 and len(wide[name]) == shapes[name][0]]
        sizes = {(len(wide[name]), shapes[name][0]) for name in before} | {
            (wide[name].shape[1], shapes[name][1]) for name in after
        }
        if len(sizes) != 1 or not after or len(before) + len(after) != len(names):
            continue
        ((source, kept),) = sizes
        if kept < source:
            norms = [wide[name].norm(dim=1) for name in before if wide[name].ndim == 2] + [
                wide[name].norm(dim=0) for name in after
            ]
            largest_F = math.prod(norms).topk(kept).indices.sort().values
            pruned |= {name: wide[name][largest_F] for name in before} | {name: wide[name][:, largest_F] for name in after}
    return pruned
