"""Self-attention of the transformer fusion: a padded row for each item against one mask over all tokens of the batch.

usage: python benchmarks/fusion_attention.py [--repeats 15]

A step is forward and backward of the whole fusion (width 256, 2 layers, 4 heads, 8 labels) for 32 items. The two ways take turns
in one process; the table has medians. The mask is what exported graphs have, and what training had before.

Last table (AMD EPYC, 2 virtual cores, one thread, machine busy):

    segments of an item                 tokens   mask ms   rows ms   ratio
    1 to 3 passages, 1 token each           69      85.0      75.3    1.13
    1 to 4 images, 49 tokens each         3969    7438.5    1964.4    3.79
    1 to 12 windows, 20 tokens each       3660    6326.2    2365.0    2.67
"""

import argparse
import statistics
import time

import torch

from vigil_modeling.fusion import AttentionLayout, build_fusion
from vigil_modeling.fusion import transformer as module
from vigil_modeling.specs import TransformerFusion

ITEMS, WIDTH, LABELS = 32, 256, 8
CASES = {
    "1 to 3 passages, 1 token each": (1, 3, 1),
    "1 to 4 images, 49 tokens each": (1, 4, 49),
    "1 to 12 windows, 20 tokens each": (1, 12, 20),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fusion = build_fusion(TransformerFusion(), WIDTH, LABELS, 0.0, ("text", "image", "audio"))
    print(f"{'segments of an item':34}{'tokens':>8}{'mask ms':>10}{'rows ms':>10}{'ratio':>8}")
    for name, (fewest, most, each) in CASES.items():
        counts = torch.randint(fewest, most + 1, (ITEMS,)) * each
        item_T = torch.repeat_interleave(torch.arange(ITEMS), counts)
        tokens_TD = torch.randn(len(item_T), WIDTH)
        seconds: dict[str, list[float]] = {"mask": [], "rows": []}
        for _ in range(repeats):
            for way, taken in seconds.items():
                vars(module)["AttentionLayout"] = Masked if way == "mask" else AttentionLayout
                start = time.perf_counter()
                hidden_NLD, _ = fusion(tokens_TD, item_T, torch.arange(ITEMS))
                hidden_NLD.sum().backward()
                taken.append(time.perf_counter() - start)
                fusion.zero_grad()
        mask, rows = (1000 * statistics.median(seconds[way]) for way in ("mask", "rows"))
        print(f"{name:34}{len(item_T):>8}{mask:>10.1f}{rows:>10.1f}{mask / rows:>8.2f}", flush=True)


class Masked(AttentionLayout):
    """The mask over all tokens, whatever it costs."""

    def __init__(self, item_T: torch.Tensor, rows_N: torch.Tensor) -> None:
        del rows_N
        self.place_T = None
        self.mask = (item_T.unsqueeze(1) == item_T.unsqueeze(0))[None, None]


if __name__ == "__main__":
    main()
