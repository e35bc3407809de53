"""Audio alone: accuracy on sounds whose recordings training had not heard, and on digits of a speaker that it had not heard.

usage: python benchmarks/leave_one_out.py [esc10|fsdd] [--data ../shared/data/audio] [--held FOLD|SPEAKER …] [--seed 0]
           [--work FOLDER]

``recipes/sounds.yaml`` is trained once for each of the five folds of ESC-10 (Piczak 2015), on the other four, which keep
the clips of one recording together; or, with :data:`DIGITS`, once for each of the six speakers of FSDD, on the other five, from
the weights of a network that was pretrained on spoken words (``pip install --no-deps openwakeword==0.4.0``, which `make setup`
does). A part of the training data is left for validation, which chooses nothing: the weights of the last step are evaluated. An
answer is the label with the largest logit.

ESC-10: settings were chosen on fold 2 by a model trained on folds 3 to 5 (accuracy .925); then all folds ran once:

    fold 1 .888   fold 2 .938   fold 3 .950   fold 4 .925   fold 5 .938   mean .928

80 clips a fold, seed 0, about 290 s of one core of an AMD EPYC for each fold. Piczak 2015: random forest .727, listeners .957.

FSDD: settings were chosen on george by models trained without george and theo (accuracy .98); then all speakers ran once:

    george .985   jackson .990   lucas 1.000   nicolas .965   theo 1.000   yweweler .985   mean .987

200 clips a speaker, seed 0, 151 to 238 s of one core of an Intel Xeon next to another training for each. That the network's
features suit these digits was seen before, by logistic regression on all six speakers (.964).
"""

import argparse
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from vigil_data.dataset.dataset import write
from vigil_data.decode import Decoder
from vigil_data.importers.collection import open_source
from vigil_data.items import Item
from vigil_data.loading.batch import collate
from vigil_training.recipe.resolve import dump_recipe, resolve_recipe
from vigil_training.runs.predict import predict_batches
from vigil_training.trainer.fit import fit_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "sounds.yaml"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = (
    f"taxonomy.heads={{digit: {{labels: {{{', '.join(f'{word}: {{}}' for word in WORDS)}}}}}}}",
    "inputs.audio={rate: 16000, window: 1.0, max_windows: 1}",
    (
        "model.encoders.audio={kind: speech_embedding, lr_factor: 0.1, "
        "weights: {kind: package, package: openwakeword, path: resources/models/embedding_model.onnx}}"
    ),
    "data.batch.budget=32",
    "data.augmentation.audio.speed={probability: 0.8, factor: [0.75, 1.35]}",
    "data.augmentation.audio.reverberation={probability: 0.3}",
    "data.augmentation.audio.equalizer={probability: 0.9, gain: 12}",
    "training.epochs=8",
)
"""What spoken words change in the recipe."""


class Benchmark(NamedTuple):
    """A set whose items are held out by the value of a column.

    Attributes:
        group: column whose values are held out in turn.
        held: its values.
        recording: column that keeps clips together when some are left for validation.
        one_in: inverse of the share of recordings that are left for validation.
        overrides: what changes in the recipe.
    """

    group: str
    held: tuple[str, ...]
    recording: str
    one_in: int
    overrides: tuple[str, ...] = ()


BENCHMARKS = {
    "esc10": Benchmark("fold", ("1", "2", "3", "4", "5"), "recording", 20),
    "fsdd": Benchmark("speaker", ("george", "jackson", "lucas", "nicolas", "theo", "yweweler"), "take", 20, DIGITS),
}


def main() -> None:
    """Print the accuracy of each group that is held out, and their mean."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    data = Path(os.environ.get("VIGIL_SHARED_DATA", RECIPE.parents[2] / "shared" / "data")) / "audio"
    parser.add_argument("set", nargs="?", choices=BENCHMARKS, default="esc10")
    parser.add_argument("--data", type=Path, default=data, help="folder with esc10 and fsdd")
    parser.add_argument("--held", nargs="+", help="folds or speakers to hold out (default: each)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder of the datasets and the runs; a finished run is not trained again")
    options = parser.parse_args()
    benchmark, folder = BENCHMARKS[options.set], options.data / options.set
    if not folder.is_dir():
        print(f"nothing is measured: {folder} is absent")
        return
    items = [item for item in open_source(options.set, folder).items() if isinstance(item, Item)]
    found = []
    with TemporaryDirectory() as temporary:
        for held in options.held or benchmark.held:
            started = time.monotonic()
            work = (options.work or Path(temporary)) / f"{options.set}-{held}"
            split = [with_split(item, benchmark, held) for item in items]
            accuracy, tried = evaluate(split, work, options.seed, benchmark.overrides)
            found.append(accuracy)
            print(f"{held}: accuracy {accuracy:.3f} of {tried}, {time.monotonic() - started:.0f} s", flush=True)
    print(f"mean of {len(found)}: {np.mean(found):.3f}")


def with_split(item: Item, benchmark: Benchmark, held: str) -> Item:
    """Return the item with its split where the group ``held`` is held out."""
    validation = zlib.crc32(str(item.columns[benchmark.recording]).encode()) % benchmark.one_in == 0
    split = "test" if str(item.columns[benchmark.group]) == held else "validation" if validation else "train"
    return replace(item, columns={**item.columns, "split": split})


def evaluate(items: list[Item], work: Path, seed: int, overrides: Iterable[str]) -> tuple[float, int]:
    """Return the accuracy on the test items of a model trained on the others, and their number."""
    if not (work / "dataset").is_dir():
        write(work / "dataset", items)
    given = [f"data.dataset={work / 'dataset'}", f"seed={seed}", "tracking.mode=disabled", *overrides]
    resolved = resolve_recipe(RECIPE, given)
    run = fit_recipe(resolved.recipe, dump_recipe(resolved), work / f"run-{seed}")
    decoder = Decoder(run.recipe.inputs, run.recipe.taxonomy.labels)
    test = [item for item in items if item.columns["split"] == "test"]
    outputs = predict_batches(run.model("last"), (collate(decoder.decode_all(of)) for of in batches(test)))
    known_L = ~np.isnan(outputs.targets_NL[0])  # with digits, the recipe's own labels are unknown
    right_N = outputs.logits_NL[:, known_L].argmax(1) == outputs.targets_NL[:, known_L].argmax(1)
    return float(right_N.mean()), len(test)


def batches(items: list[Item], size: int = 16) -> Iterator[list[Item]]:
    """Yield the items in batches."""
    yield from (items[start : start + size] for start in range(0, len(items), size))


if __name__ == "__main__":
    main()
