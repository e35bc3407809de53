"""Time and memory of planning an epoch of 10 million rows, in this process.

usage: python benchmarks/planning.py [--rows 10000000] [--world 64]

Costs are log-normal, as lengths of posts are; a batch holds about 27 rows. The peak of memory includes Python, NumPy and the
costs. The goal is 5 s and 1 GiB.
"""

import argparse
import resource
import time

import numpy as np

from vigil_data.loading.sampler import plan, resize
from vigil_data.specs import BatchPlan, BlockShuffle

SPEC = BatchPlan(budget=1024, max_items=64)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--world", type=int, default=64)
    options = parser.parse_args()
    costs = np.random.default_rng(0).lognormal(3, 1, options.rows)
    rows = np.arange(options.rows)
    for name, shuffle in (("rows", None), ("blocks", BlockShuffle())):
        start = time.perf_counter()
        made = plan(costs, SPEC, 0, 0, options.world, shuffle=shuffle, rows=rows)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name}: {options.rows:,} rows, {options.world} ranks, {made.steps:,} steps: {seconds:.2f} s, peak {peak:.2f} GiB")
    start = time.perf_counter()
    resize(made, costs, made.steps // 2, options.world // 2, [0])
    print(f"the second half for {options.world // 2} ranks: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
