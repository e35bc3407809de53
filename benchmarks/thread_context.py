"""What the thread recipe reads in the message that another one answers: accuracy where the parent decides, with and without it.

usage: python benchmarks/thread_context.py [--items 4000] [--seeds 0] [--dir runs/thread-context]

`vigil data demo --content-type thread` generates messages. Half of them mean nothing without their parent: a label is positive in
half of the cases, and replies are the same for both (docs/demo.md). recipes/thread.yaml is trained on messages as they are, then
without the roles, so that a parent looks like a message, then without the parents. The table has the accuracy at a probability
of .5 on the test split, with Wilson's 95 % interval, on two kinds of messages:

- the parent decides: for the label that it decides. The target is at least .9 with context, and chance, .5, without it;
- one of the two states a subject: the message, which is then an endorsement, or its parent, which is only context.

Last table (3,000 items, 600 of them test, seed 0, AMD EPYC, two cores; the side without roles was not measured at this size):

- the parent decides, 295 messages: with context 1.000 (.987 to 1.000), without context .478 (.422 to .535);
- one of the two states a subject, 101 messages: with context .990 (.946 to .998), without context 1.000 (.963 to 1.000).
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import vigil
from vigil_data.dataset.dataset import Dataset, exists, write
from vigil_data.demo import generate
from vigil_data.items import Item
from vigil_data.progress import Progress
from vigil_evaluation.stats.binomial import wilson
from vigil_training.runs.predict import predict_rows, raw_probabilities

DECIDED, STATED = "_decided_by_parent", ("stated_in_message", "subject_answered_with_something_else")
RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "thread.yaml"


def without_role(item: Item) -> Item:
    """Return a message and its parent as two messages."""
    return replace(item, roles={})


def without_context(item: Item) -> Item:
    """Return a message alone."""
    kept = [text for number, text in enumerate(item.text) if item.role("text", number) != "context"]
    return replace(item, text=tuple(kept), roles={})


SIDES: dict[str, Callable[[Item], Item]] = {
    "with context": lambda item: item,
    "context without its role": without_role,
    "without context": without_context,
}


def decisions(run: "vigil.Run", dataset: Dataset) -> dict[str, tuple[int, int]]:
    """Return, for each kind of message, the number of right decisions and of messages."""
    rows = dataset.rows("test")
    tests = dataset.table(["functionality"])["functionality"].take(rows).to_pylist()
    labels = list(run.recipe.taxonomy.labels)
    outputs = predict_rows(run, dataset, rows)
    right_NL = (raw_probabilities(outputs.logits_NL) >= 0.5) == (outputs.targets_NL >= 0.5)
    decided = [right_NL[n, labels.index(test.removesuffix(DECIDED))] for n, test in enumerate(tests) if test.endswith(DECIDED)]
    stated = [right_NL[n, labels.index("endorsement")] for n, test in enumerate(tests) if test in STATED]
    return {"the parent decides": (sum(decided), len(decided)), "one states a subject": (sum(stated), len(stated))}


def measure(folder: Path, items: int, seeds: Sequence[int]) -> dict[str, list[dict[str, tuple[int, int]]]]:
    """Train and test each side with each seed, and return right decisions and messages by side."""
    found: dict[str, list[dict[str, tuple[int, int]]]] = {side: [] for side in SIDES}
    for seed in seeds:
        source = folder / f"threads-{seed}"
        if not exists(source):
            with Progress("generating") as progress:
                generate(source, seed=seed, items=items, content_type="thread", progress=progress)
        messages = Dataset(source)
        for number, (side, change) in enumerate(SIDES.items()):
            path = folder / f"threads-{seed}-{number}"
            if not exists(path):
                write(path, map(change, messages.take(np.arange(len(messages)))))
            run = vigil.train(
                RECIPE, folder / f"run-{seed}-{number}", data__dataset=str(path), seed=seed, tracking__mode="disabled"
            )
            found[side].append(decisions(run, Dataset(path)))
    return found


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--dir", type=Path, default=Path("runs/thread-context"))
    arguments = parser.parse_args()
    table = Table(box=None, header_style="bold")
    for column in ("trained and tested", "messages", "accuracy", "95 % interval", "of", "by seed"):
        table.add_column(column)
    for side, counts in measure(arguments.dir, arguments.items, arguments.seeds).items():
        for kind in counts[0]:
            right, all_ = (sum(count[kind][part] for count in counts) for part in (0, 1))
            interval = wilson(right, all_, 0.95)
            seeds = ", ".join(f"{count[kind][0] / count[kind][1]:.3f}" for count in counts)
            table.add_row(side, kind, f"{right / all_:.3f}", f"{interval.low:.3f} to {interval.high:.3f}", f"{all_}", seeds)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
