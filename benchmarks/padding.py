"""Padding of batches of real text, balance of ranks with mixed media, and how alike neighbouring batches of a block shuffle are.

usage: python benchmarks/padding.py [DATA]

DATA is the folder of ``recipes/collections/shared-text.yaml`` (default: ../shared/data). Its datasets are imported, joined, and
planned with the batches of ``recipes/comments.yaml``: by tokens, as that recipe does, and by characters; ``pool 1`` is random
order. The goals are 5 % of padding, and 1.05 for the most expensive rank.

Last run (AMD EPYC, 169,575 texts of 24.6 MiniLM tokens): 3.6 % of the tokens are padding by tokens, 32.5 % by characters, 79.8 %
in random order. The most expensive of 8 ranks costs 1.000 and 1.001 times the mean.
"""

import argparse
import itertools
import os
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from vigil.workflows.shipped_recipes import RECIPES, taxonomy_file
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.importers.collection import open_import
from vigil_data.loading.sampler import EpochPlan, costs, plan
from vigil_data.loading.text_tokens import row_costs, text_tokens
from vigil_data.specs import BatchPlan, BlockShuffle, Cost, Inputs
from vigil_training.recipe.resolve import resolve_recipe


def padding(made: EpochPlan, tokens_N: NDArray[np.int64]) -> float:
    """Return the share of padding among the tokens of all batches."""
    batches = [tokens_N[made.rows(step, rank)] for step in range(made.steps) for rank in range(made.world)]
    return 1 - tokens_N.sum() / sum(len(tokens) * int(tokens.max()) for tokens in batches if len(tokens))


def rank_excess(made: EpochPlan, costs_N: NDArray[np.float64]) -> float:
    """Return the cost of the most expensive rank of each step over the mean of the ranks, summed over steps."""
    totals = made.totals(costs_N)
    return float(totals.max(axis=1).sum() / totals.mean(axis=1).sum())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    data = Path(os.environ.get("VIGIL_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser.add_argument("data", type=Path, nargs="?", default=data)
    folder = parser.parse_args().data
    if not folder.is_dir():
        print(f"nothing is measured: {folder} is absent")
        return
    with TemporaryDirectory() as temporary:
        collection = str(RECIPES / "collections" / "shared-text.yaml")
        sources = [reader.items() for reader in open_import(collection, folder, taxonomy_file)]
        write(Path(temporary) / "dataset", chain.from_iterable(sources), on_leak="skip")
        measure(Dataset(Path(temporary) / "dataset"))


def measure(dataset: Dataset) -> None:
    """Print the shares of padding, the balance of ranks and the likeness of batches."""
    recipe = resolve_recipe(RECIPES / "comments.yaml").recipe
    spec, inputs = recipe.data.batch, recipe.inputs
    assert inputs.text is not None
    rows, tokens_N = np.arange(len(dataset)), text_tokens(dataset, inputs.text).astype(np.int64)
    print(f"{len(rows):,} texts of {tokens_N.mean():.1f} tokens on average")
    (by_tokens,) = row_costs(dataset, spec.cost, inputs, rows)
    (by_characters,) = row_costs(dataset, Cost(item=2, character=0.25), inputs, rows)
    for name, price, pool in (
        ("tokens", by_tokens, spec.pool),
        ("characters", by_characters, spec.pool),
        ("pool 1", by_tokens, 1),
    ):
        share = padding(plan(price, spec.model_copy(update={"pool": pool}), 0, 0), tokens_N)
        print(f"by {name}: {100 * share:.1f} % of the tokens are padding")

    rng = np.random.default_rng(0)  # posts of text, a third with images, a fifth with up to a minute of sound
    images = rng.poisson(1.0, len(rows)) * (rng.random(len(rows)) < 1 / 3)
    seconds = rng.uniform(1, 60, len(rows)) * (rng.random(len(rows)) < 1 / 5)
    every = Inputs.model_validate({**inputs.model_dump(mode="json"), "image": {}, "audio": {}})
    mixed = costs(np.stack([dataset.facts(rows)[:, 0], images, seconds], axis=1), Cost(), every)
    for budget in (2048, 8192):
        made = plan(mixed, BatchPlan(budget=budget), 0, 0, world=8)
        print(f"budget {budget}: the most expensive of 8 ranks costs {rank_excess(made, mixed):.3f} times the mean")

    names = dataset.table(["source"])["source"].combine_chunks().dictionary_encode()
    first_N = (names.indices.to_numpy() == 0).astype(np.float64)  # stored one source after the other
    for name, shuffle in (("rows", None), ("blocks", BlockShuffle()), ("small windows", BlockShuffle(window=1, streams=1))):
        made = plan(by_tokens, spec, 0, 0, shuffle=shuffle, rows=rows)
        shares = [first_N[made.rows(step, 0)].mean() for step in range(made.steps)]
        like = float(np.corrcoef(*zip(*itertools.pairwise(shares), strict=True))[0, 1])
        print(f"{name}: correlation of the first source's share in neighbouring batches: {like:.2f}")


if __name__ == "__main__":
    main()
