"""Character-level F1 of a run's span head on toxic_spans, next to a list of words learned from the training split.

usage: python benchmarks/spans.py RUN DATASET [--label toxic] [--column toxic_spans] [--split test] [--items 2000]

    vigil data import toxic_spans FOLDER --to DATASET     # docs/models.md has the recipe
    vigil train recipe.yaml --run RUN

F1 is that of SemEval-2021 task 5 (Pavlopoulos et al. 2021, section 4): of the characters of each post, and the mean over posts; a
post without a marked character counts 1 if none is predicted, else 0. The word list marks each word that is in a span in at least
half of its occurrences in the training split. Intervals are percentiles of 1,000 bootstrap samples of posts.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from vigil.workflows.evidence import item_examples
from vigil_data.dataset.dataset import Dataset
from vigil_data.decode.text_spans import read_spans
from vigil_training.runs.run import Run

WORD = re.compile(r"[^\W_]+")
Span = tuple[int, int]


def character_f1(found: Iterable[Span], due: Iterable[Span]) -> float:
    """Return F1 of the characters of one post."""
    predicted, gold = ({place for start, stop in spans for place in range(start, stop)} for spans in (found, due))
    if not gold or not predicted:
        return float(gold == predicted)
    return 2 * len(predicted & gold) / (len(predicted) + len(gold))


def learn_words(texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> set[str]:
    """Return the words that are in a span in at least half of their occurrences."""
    seen: Counter[str] = Counter()
    marked: Counter[str] = Counter()
    for text, of_text in zip(texts, spans, strict=True):
        for word in WORD.finditer(text):
            seen[word.group().lower()] += 1
            marked[word.group().lower()] += any(start <= word.start() and word.end() <= stop for start, stop in of_text)
    return {word for word, count in marked.items() if 2 * count >= seen[word]}


def describe(name: str, scores: Sequence[float]) -> str:
    """Return the mean of scores with its interval."""
    values = np.array(scores)
    means = np.random.default_rng(0).choice(values, (1000, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{name:<12} F1 {values.mean():.3f} [{low:.3f}, {high:.3f}] on {len(values)} posts"


def main() -> None:
    """Score both, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--label", default="toxic")
    parser.add_argument("--column", default="toxic_spans")
    parser.add_argument("--split", default="test")
    parser.add_argument("--items", type=int, default=2000, help="posts that are scored, the first of the split")
    given = parser.parse_args()
    dataset = Dataset(given.dataset)
    train, test = dataset.take(dataset.rows("train")), dataset.take(dataset.rows(given.split)[: given.items])
    words = learn_words([item.text[0] for item in train], [read_spans(item.columns[given.column]) for item in train])
    due = {item.id: read_spans(item.columns[given.column]) for item in test}
    listed = {item.id: [w.span() for w in WORD.finditer(item.text[0]) if w.group().lower() in words] for item in test}
    print(describe("word list", [character_f1(listed[id_], due[id_]) for id_ in due]), f"({len(words)} words)")
    examples = item_examples(Run(given.run), dataset, list(due), checkpoint="last")
    found = {id_: [(span.start, span.stop) for span in example.spans[given.label]] for id_, example in examples.items()}
    print(describe("span head", [character_f1(found[id_], due[id_]) for id_ in found]))


if __name__ == "__main__":
    main()
