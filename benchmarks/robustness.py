"""What typing errors and evasion cost a classifier of comments: with and without normalization and augmentation.

usage: python benchmarks/robustness.py [--data ../shared/data/text] [--share 1.0] [--test 4000] [--seeds 3] [--work FOLDER]

``recipes/comments.yaml`` is trained three times for each seed: as ``plain``, with neither normalization nor augmentation; with
``normalize: {homoglyphs: fold}``; and with that and ``data.augmentation.text.perturb``. The data folder holds davidson, edos,
stormfront, hatemoji_build and surge_toxicity (docs/data.md says where they come from); without it, nothing is measured.

Each model is tried on edos' official test split (label sexism) and on surge (label offensive), and on copies of both perturbed
in every way of the suites. The table has the AUROC of the unperturbed texts and what each perturbation changes, as means over
seeds; the last lines are the mean loss over all perturbations, and its ratio to that of the first variant.
"""

import argparse
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from vigil_data.augmentation.text import EMOJI, casing, homoglyphs, leetspeak, replace, spacing, stretching, typos
from vigil_data.dataset.dataset import write
from vigil_data.decode import Decoder
from vigil_data.importers import SourceReader, load_source
from vigil_data.items import Item
from vigil_data.loading.batch import Batch, collate
from vigil_evaluation.metrics import auroc
from vigil_training.recipe.resolve import dump_recipe, resolve_recipe
from vigil_training.runs.predict import predict_batches
from vigil_training.runs.run import Run
from vigil_training.trainer.fit import fit_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "comments.yaml"
TRAINING = {"davidson": "davidson", "edos": "edos", "stormfront": "stormfront", "hatemoji": "hatemoji_build"}
TESTS = {"edos": ("edos", "sexism"), "surge": ("surge_toxicity", "offensive")}
PERTURBATIONS: Mapping[str, Callable[[str, Random], str]] = {
    "typos, 1 word": typos,
    "typos, 3 words": lambda text, rng: typos(text, rng, 3),
    "leetspeak": lambda text, _: leetspeak(text),
    "spacing: join": lambda text, _: spacing(text, "join"),
    "spacing: spread": lambda text, _: spacing(text, "spread"),
    "spacing: zero_width": lambda text, _: spacing(text, "zero_width"),
    "casing: upper": lambda text, _: casing(text, "upper"),
    "casing: alternate": lambda text, _: casing(text, "alternate"),
    "stretching": stretching,
    "homoglyphs": homoglyphs,
    "emoji": lambda text, _: replace(text, EMOJI, any_case=True),
}
"""The perturbations of suites that need no words of the suite, with their default options and others."""

NORMALIZED = ("inputs.text.normalize={homoglyphs: fold}",)
VARIANTS = {
    "plain": ("inputs.text.normalize=null", "data.augmentation=null"),
    "normalized": (*NORMALIZED, "data.augmentation=null"),
    "and augmented": (*NORMALIZED, "data.augmentation={text: {perturb: {probability: 0.4}}}"),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    data = Path(os.environ.get("VIGIL_SHARED_DATA", RECIPE.parents[2] / "shared" / "data")) / "text"
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--share", type=float, default=1.0, help="share of the training and validation items (default: all)")
    parser.add_argument("--test", type=int, default=4000, help="items of each test set at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--work", type=Path, help="folder of the dataset and the runs; what it has is not done again")
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"nothing is measured: {options.data} is absent")
        return
    with TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        if not (work / "dataset").is_dir():
            write(work / "dataset", training_items(options.data, options.share))
        tests = {name: test_items(options.data / folder, name, options.test) for name, (folder, _) in TESTS.items()}
        found: dict[str, list[Mapping[tuple[str, str], float]]] = {}
        for seed in range(options.seeds):
            for variant in options.variants:
                run = train(work, variant, (*VARIANTS[variant], f"seed={seed}", f"data.dataset={work / 'dataset'}"))
                found.setdefault(variant, []).append(evaluate(run, tests))
    print_table({variant: averaged(results) for variant, results in found.items()})


def training_items(data: Path, share: float) -> list[Item]:
    """Return the training and validation items of the recipe's datasets, or a share of them that depends on ids alone."""
    items = [
        item
        for name, folder in TRAINING.items()
        for item in SourceReader(load_source(name), data / folder).items()
        if isinstance(item, Item)
    ]
    return [item for item in items if item.columns["split"] != "test" and zlib.crc32(item.id.encode()) < share * 2**32]


def test_items(path: Path, name: str, most: int) -> list[Item]:
    """Return items of a test split, the same for every model."""
    items = [
        item
        for item in SourceReader(load_source(name), path).items()
        if isinstance(item, Item) and item.columns["split"] == "test"
    ]
    return Random(0).sample(items, min(most, len(items)))


def train(work: Path, variant: str, overrides: Sequence[str]) -> Run:
    """Train a variant, or return its finished run."""
    resolved = resolve_recipe(RECIPE, [*overrides, "tracking.mode=disabled"])
    return fit_recipe(resolved.recipe, dump_recipe(resolved), work / f"{variant.replace(' ', '-')}-{resolved.recipe.seed}")


def evaluate(run: Run, tests: Mapping[str, Sequence[Item]]) -> dict[tuple[str, str], float]:
    """Return test set and perturbation to AUROC; the perturbation of unperturbed texts has no name."""
    results = run.path / f"robustness-{'-'.join(str(len(items)) for items in tests.values())}.json"
    if results.is_file():
        return {(name, perturbation): value for name, perturbation, value in json.loads(results.read_text())}
    model, decoder = run.model("best"), Decoder(run.recipe.inputs, run.recipe.taxonomy.labels)
    found = {}
    for name, items in tests.items():
        column = run.recipe.taxonomy.labels.index(TESTS[name][1])
        for perturbation, change in {"": lambda text, _: text, **PERTURBATIONS}.items():
            changed = [
                Item(item.id, tuple(change(text, Random(item.id)) for text in item.text), targets=item.targets) for item in items
            ]
            outputs = predict_batches(model, batches(decoder, changed))
            value = auroc(outputs.targets_NL[:, column], outputs.logits_NL[:, column])
            assert value is not None
            found[name, perturbation] = value
    results.write_text(json.dumps([[*key, value] for key, value in found.items()]))
    return found


def batches(decoder: Decoder, items: Sequence[Item], size: int = 64) -> list[Batch]:
    """Return batches of items of similar length."""
    ordered = sorted(items, key=lambda item: sum(map(len, item.text)))
    return [collate(decoder.decode_all(ordered[start : start + size])) for start in range(0, len(ordered), size)]


def averaged(results: Sequence[Mapping[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    """Return the mean over seeds."""
    return {key: float(np.mean([result[key] for result in results])) for key in results[0]}


def print_table(found: Mapping[str, Mapping[tuple[str, str], float]]) -> None:
    """Print the AUROC of unperturbed texts, and what each perturbation takes from it."""
    print(f"{'':28}" + "".join(f"{variant:>16}" for variant in found))
    losses: dict[str, list[float]] = {variant: [] for variant in found}
    for name, label in ((name, label) for name, (_, label) in TESTS.items()):
        print(f"{f'{name}, {label}: AUROC':28}" + "".join(f"{of[name, '']:>16.3f}" for of in found.values()))
        for perturbation in PERTURBATIONS:
            row: NDArray[np.float64] = np.array([of[name, ""] - of[name, perturbation] for of in found.values()])
            for variant, loss in zip(found, row, strict=True):
                losses[variant].append(loss)
            print(f"  {perturbation:26}" + "".join(f"{-loss:>+16.3f}" for loss in row))
    means = {variant: float(np.mean(loss)) for variant, loss in losses.items()}
    print(f"{'mean loss':28}" + "".join(f"{mean:>16.3f}" for mean in means.values()))
    print(f"{'ratio to the first':28}" + "".join(f"{mean / means[next(iter(means))]:>16.2f}" for mean in means.values()))


if __name__ == "__main__":
    main()
