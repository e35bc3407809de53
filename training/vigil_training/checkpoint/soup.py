"""Model soup: averages of the weights of several checkpoints (Wortsman et al. 2022, section 3)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vigil_training.checkpoint.manifest import verify_checkpoint
from vigil_training.checkpoint.reader import CheckpointReader


class Ingredient(NamedTuple):
    """A checkpoint that was considered for a soup.

    Attributes:
        path: folder of the checkpoint.
        value: monitor of the checkpoint alone.
        soup: monitor of the soup with it.
        included: whether it is in the soup.
    """

    path: Path
    value: float
    soup: float
    included: bool


def average_weights(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Return the mean of each weight and running statistic, computed in float64; moving averages count as weights.

    Integers, such as the number of batches of a norm, are those of the first checkpoint.

    Args:
        paths: folders of checkpoints of one model.

    Raises:
        UserError: if a checkpoint is damaged.
    """
    first = CheckpointReader(paths[0])
    inventory = first.manifest.inventory
    sums = {name: value.double() for name, value in first.weights().items() if value.is_floating_point()}
    for path in paths[1:]:
        for name, value in CheckpointReader(path).weights().items():
            if name in sums:
                sums[name] += value.double()
    means = {name: (total / len(paths)).to(getattr(torch, inventory[name].dtype)) for name, total in sums.items()}
    return first.weights() | means


def cook_soup(
    paths: Sequence[Path],
    method: Literal["greedy", "uniform"],
    mode: Literal["max", "min"],
    score: Callable[[Sequence[Path]], float],
) -> list[Ingredient]:
    """Choose the checkpoints of a soup.

    ``uniform`` takes all. ``greedy`` begins with the best, and adds one after the other if the soup is then not worse, so that
    the result is never worse than the best (recipe 1 of the paper).

    Args:
        paths: folders of checkpoints of one model.
        method: how to choose.
        mode: whether a higher or a lower score is better.
        score: monitor of the average of some checkpoints.

    Returns:
        All checkpoints, the best first.

    Raises:
        UserError: if a checkpoint is damaged.
    """
    for path in paths:
        verify_checkpoint(path)
    sign = -1 if mode == "max" else 1
    values = {path: score([path]) for path in paths}
    ranked = sorted(paths, key=lambda path: sign * values[path])
    if method == "uniform":
        soup = score(ranked)
        return [Ingredient(path, values[path], soup, True) for path in ranked]
    chosen, best = [ranked[0]], values[ranked[0]]
    ingredients = [Ingredient(ranked[0], best, best, True)]
    for path in ranked[1:]:
        value = score([*chosen, path])
        included = sign * value <= sign * best
        if included:
            chosen, best = [*chosen, path], value
        ingredients.append(Ingredient(path, values[path], value, included))
    return ingredients
