"""Whether a guard reads its policies: decisions under other policy texts, and a label that it was never trained on.

usage: python benchmarks/guard_policies.py runs/guard [--held-out RUN --label sexism] [--encoder runs/comments] [--items 4000]

On the test split of the run's dataset, for each label:

- AUROC of the guard, of the same language model untrained with all of its layers (zero-shot, the same prompt), and of a run of
  a small encoder, with bootstrap intervals of each and of the difference to the guard;
- the same under another name and definition of the label, which stand below and in no recipe;
- pairs of prompts that differ in the policy text alone, and whose answers differ: two labels, where one applies, or a policy
  of several clauses with and without those that apply. The decision is that at a probability of .5;
- the change of the probability when the clauses of a policy of all labels are shuffled and re-coded;
- with --held-out: AUROC of a label that another run never saw a target of, described in words alone. For sexism, train it with
  ``vigil train recipes/guard.yaml name=guard-held-out data.where="source = 'hatemoji' OR (source = 'stormfront' AND id LIKE '%1')
  OR (source = 'davidson' AND (davidson_class = 0 OR id LIKE '%3' OR id LIKE '%8'))"``.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from vigil_data.dataset.dataset import Dataset
from vigil_data.decode import Decoder
from vigil_data.errors import UserError
from vigil_data.loading.batch import Batch, collate
from vigil_data.progress import Progress
from vigil_data.prompts.assemble import Question
from vigil_data.prompts.build import prompt_tokenizer
from vigil_data.prompts.clauses import Clause, clause_text, make_clause
from vigil_data.prompts.policy_sampling import TrainingQuestions
from vigil_data.taxonomy import Label
from vigil_evaluation.stats.binomial import wilson
from vigil_evaluation.stats.intervals import interval
from vigil_modeling.guards.guard_model import GuardModel, build_guard
from vigil_modeling.specs import GuardSpec
from vigil_training.runs.predict import predict_rows
from vigil_training.runs.run import Run

RESAMPLES, CONFIDENCE, BATCH = 500, 0.95, 32
OTHER = {
    "hate": (
        "bigotry",
        Label(
            instruction="Is somebody treated with bigotry?",
            definition="Bigoted remarks: the writer despises, mocks or menaces people for the community they come from.",
            violates=("collective blame of an ethnic or religious community", "denying such people equal rights"),
            allowed=("insults between two persons", "opinions on a government"),
        ),
    ),
    "sexism": (
        "disrespect for female persons",
        Label(
            instruction="Is the tone towards females disrespectful?",
            definition="The writer is disrespectful of girls or women in general, sexualizes them, or denies them a say.",
            violates=("generalizations about what girlfriends or wives are like", "jokes at the cost of females"),
            allowed=("neutral mentions of a female person", "arguments in favour of equality"),
        ),
    ),
    "offensive": (
        "foul mouth",
        Label(
            instruction="Does the writer have a foul mouth?",
            definition="Foul words occur: swearing, dirty expressions or abuse, no matter why.",
            violates=("swearing out of joy", "abusive nicknames"),
            allowed=("a firm but clean rebuke", "technical vocabulary"),
        ),
    ),
}
"""Label to another name and policy text, of the same meaning. A label that is absent is read in its last paraphrase."""

Policy = tuple[int, ...]
Values = NDArray[np.float64]


class Row(NamedTuple):
    """A line of the printed table."""

    part: str
    of: str
    value: float
    low: float
    high: float
    count: int


class Texts(NamedTuple):
    """The clauses that a guard is asked about: L labels' own, L in other words, and L for each code."""

    clauses: tuple[Clause, ...]
    labels: int

    def own(self, label: int) -> Policy:
        """The policy of a label's own text."""
        return (label,)

    def other(self, label: int) -> Policy:
        """The policy of another name and definition."""
        return (self.labels + label,)

    def coded(self, order: Sequence[int]) -> Policy:
        """The policy of several labels, headed S1, S2, … in this order."""
        return tuple((2 + place) * self.labels + label for place, label in enumerate(order))


def texts_of(run: Run) -> Texts:
    """Write and tokenize all clauses that are asked about."""
    recipe = run.recipe
    assert isinstance(recipe.model, GuardSpec)
    assert recipe.inputs.text is not None
    labels = {name: label for head in recipe.taxonomy.heads.values() for name, label in head.labels.items()}
    encode, sections = prompt_tokenizer(recipe.inputs.text.tokenizer).text, recipe.model.prompt.sections
    titles: list[Mapping[str, tuple[str, Label]]] = [
        {name: (label.heading(name, 0), label) for name, label in labels.items()},
        {name: OTHER.get(name) or in_other_words(name, label) for name, label in labels.items()},
        *({name: (f"S{code}", label) for name, label in labels.items()} for code in range(1, len(labels) + 1)),
    ]
    clauses = [
        make_clause(name, clause_text(title, label, sections), encode) for each in titles for name, (title, label) in each.items()
    ]
    return Texts(tuple(clauses), len(labels))


def in_other_words(name: str, label: Label) -> tuple[str, Label]:
    """Return name and policy text of the label's last paraphrase; its own without any."""
    last = len(label.paraphrases)
    return label.heading(name, last), label.worded(last)


class Test(NamedTuple):
    """The items that are asked about: batches of them, and their targets."""

    batches: list[Batch]
    targets_NL: NDArray[np.float32]
    ids: list[str]


def read_test(run: Run, split: str, most: int, seed: int) -> Test:
    """Read and decode items of a split that have a known target, a random choice of them if there are more than ``most``."""
    recipe, labels = run.recipe, run.recipe.taxonomy.labels
    dataset = Dataset(Path(recipe.data.dataset))
    rows = dataset.rows(split)
    rows = rows[~np.isnan(dataset.targets(labels, rows)).all(axis=1)]
    if not len(rows):
        raise UserError(f"{recipe.data.dataset}: split {split} has no item with a known target of {', '.join(labels)}")
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    rows = rows[np.argsort(dataset.facts(rows)[:, 0], kind="stable")]  # batches of similar length
    decoder = Decoder(recipe.inputs, labels)
    batches = [collate(decoder.decode_all(dataset.take(rows[start : start + BATCH]))) for start in range(0, len(rows), BATCH)]
    targets_NL = np.concatenate([batch.targets.numpy() for batch in batches])
    return Test(batches, targets_NL, [id_ for batch in batches for id_ in batch.ids])


def answers(model: GuardModel, test: Test, asks: Sequence[Sequence[Policy]], what: str) -> list[Values]:
    """Return the log odds of each policy of each item.

    Args:
        model: its clauses are those that the policies number.
        test: the items.
        asks: of each item, the policies that it is asked about.
        what: named next to the progress.
    """
    found: list[Values] = []
    with Progress(what) as progress, torch.inference_mode():
        for batch in test.batches:
            asked = asks[len(found) : len(found) + len(batch)]
            first = len(batch) * len(model.labels)
            pairs = [(item, policy) for item, policies in enumerate(asked) for policy in policies]
            questions = tuple(Question(item, policy, first + place) for place, (item, policy) in enumerate(pairs))
            count = len(questions)
            if count:
                drawn = TrainingQuestions(questions, np.zeros(count, np.float32), np.zeros((count, len(model.labels)), np.bool_))
                composites = model(replace(batch, questions=drawn)).composites
                assert composites is not None
                flat = composites.logits_Q.double().numpy()
            else:
                flat = np.zeros(0)
            found += np.split(flat, np.cumsum([len(policies) for policies in asked])[:-1])
            progress("items", len(found), len(test.ids))
    return found


def areas(targets_N: Values, scores: Mapping[str, Values], seed: int) -> Iterator[tuple[str, float, float, float]]:
    """Yield AUROC and its interval of each of several scores of the same items, and of the difference of the first to each."""
    names = list(scores)
    estimates = {name: area(targets_N, scores[name]) for name in names}
    rng, drawn = np.random.default_rng(seed), {name: np.full(RESAMPLES, np.nan) for name in names}
    for resample in range(RESAMPLES):
        chosen = rng.integers(0, len(targets_N), len(targets_N))
        for name in names:
            drawn[name][resample] = area(targets_N[chosen], scores[name][chosen])
    for name in names:
        yield name, estimates[name], *bounds(estimates[name], drawn[name])
    for name in names[1:]:
        difference = estimates[names[0]] - estimates[name]
        yield f"{names[0]} - {name}", difference, *bounds(difference, drawn[names[0]] - drawn[name])


def area(targets_N: Values, scores_N: Values) -> float:
    """Return AUROC from ranks (Mann and Whitney 1947), fast enough for a bootstrap; NaN if all targets are of one class."""
    positives = int(targets_N.sum())
    negatives = len(targets_N) - positives
    if not positives or not negatives:
        return np.nan
    below = rankdata(scores_N)[targets_N == 1].sum() - positives * (positives + 1) / 2
    return float(below / (positives * negatives))


def bounds(estimate: float, samples: Values) -> tuple[float, float]:
    """Return the bootstrap interval; NaN if there is none."""
    found = interval(estimate, samples, CONFIDENCE)
    return (np.nan, np.nan) if found is None else (found.low, found.high)


def share(part: str, of: str, outcomes: Sequence[bool]) -> Row:
    """Return a share with Wilson's interval."""
    if not outcomes:
        return Row(part, of, np.nan, np.nan, np.nan, 0)
    found = wilson(sum(outcomes), len(outcomes), CONFIDENCE)
    return Row(part, of, float(np.mean(outcomes)), found.low, found.high, len(outcomes))


def measure_areas(models: Mapping[str, GuardModel], texts: Texts, test: Test, encoder: Run | None, seed: int) -> Iterator[Row]:
    """Yield AUROC of each model, and of the trained guard under other names and definitions."""
    known_NL = ~np.isnan(test.targets_NL)
    scores: dict[str, list[Values]] = {}
    for name, model in models.items():
        own = [[texts.own(label) for label in np.flatnonzero(known_L)] for known_L in known_NL]
        scores[name] = _by_label(answers(model, test, own, name), known_NL)
    guard = next(iter(models))
    other = [[texts.other(label) for label in np.flatnonzero(known_L)] for known_L in known_NL]
    scores["other name and definition"] = _by_label(answers(models[guard], test, other, "other words"), known_NL)
    labels = next(iter(models.values())).labels
    peer_NL = None if encoder is None else encoder_logits(encoder, test, labels)
    for place, label in enumerate(labels):
        known_N = known_NL[:, place]
        targets_N = (test.targets_NL[known_N, place] >= 0.5).astype(float)
        compared = {name: of[place] for name, of in scores.items()}
        if peer_NL is not None and not np.isnan(peer_NL[:, place]).any():
            compared["encoder"] = peer_NL[known_N, place]
        for name, value, low, high in areas(targets_N, compared, seed):
            yield Row(f"AUROC {label}", name, value, low, high, len(targets_N))


def _by_label(ragged: Sequence[Values], known_NL: NDArray[np.bool_]) -> list[Values]:
    """Return the answers about each label, in the order of the items where it is known."""
    scores_NL = np.full(known_NL.shape, np.nan)
    scores_NL[known_NL] = np.concatenate(ragged)
    return [scores_NL[known_NL[:, label], label] for label in range(known_NL.shape[1])]


def encoder_logits(run: Run, test: Test, labels: Sequence[str]) -> Values:
    """Return the logits of another run for the items, NaN for labels that it lacks."""
    dataset = Dataset(Path(run.recipe.data.dataset))
    with Progress("encoder") as progress:
        outputs = predict_rows(run, dataset, dataset.rows("test"), progress=progress)
    row = {id_: n for n, id_ in enumerate(outputs.ids)}
    if missing := [id_ for id_ in test.ids if id_ not in row]:
        raise UserError(
            f"{run.path}: its dataset lacks {len(missing)} of the items, such as {missing[0]}; give a run on the same one"
        )
    logits_NL = np.full((len(test.ids), len(labels)), np.nan)
    for place, label in enumerate(labels):
        if label in run.recipe.taxonomy.labels:
            column = run.recipe.taxonomy.labels.index(label)
            logits_NL[:, place] = outputs.logits_NL[[row[id_] for id_ in test.ids], column]
    return logits_NL


def measure_pairs(model: GuardModel, texts: Texts, test: Test) -> Iterator[Row]:
    """Yield the share of decisions, and of pairs of them, that follow the policy text."""
    asks: list[list[Policy]] = []
    kinds: list[list[tuple[str, bool]]] = []  # of each question: the kind of its pair, and the answer that follows the text
    for targets_L in test.targets_NL:
        applies = [int(label) for label in np.flatnonzero(targets_L >= 0.5)]
        others = [int(label) for label in np.flatnonzero(targets_L < 0.5)]
        asks.append([])
        kinds.append([])
        for one in applies:
            for other in others:
                asks[-1] += [texts.own(one), texts.own(other)]
                kinds[-1] += [("one label, or another", True), ("one label, or another", False)]
        if applies and others:
            asks[-1] += [texts.coded(sorted([*applies, *others])), texts.coded(others)]
            kinds[-1] += [("clauses that apply, or left out", True), ("clauses that apply, or left out", False)]
    logits = answers(model, test, asks, "pairs")
    right: dict[str, list[bool]] = {}
    for of_item, kinds_of_item in zip(logits, kinds, strict=True):
        for logit, (kind, applies_now) in zip(of_item, kinds_of_item, strict=True):
            right.setdefault(kind, []).append(bool((logit >= 0) == applies_now))
    for kind in ("one label, or another", "clauses that apply, or left out"):
        outcomes = right.get(kind, [])
        yield share("follows the text", f"{kind}: decisions", outcomes)
        yield share("follows the text", f"{kind}: both of a pair", [a and b for a, b in zip(*[iter(outcomes)] * 2, strict=True)])


def measure_order(model: GuardModel, texts: Texts, test: Test, seed: int) -> Iterator[Row]:
    """Yield the median and the 95th percentile of the change of probability in another order of the clauses."""
    labels, asks = list(range(texts.labels)), []
    for id_ in test.ids:
        rng, order = Random(f"{seed} {id_}"), labels
        while len(labels) > 1 and order == labels:
            order = rng.sample(labels, len(labels))
        asks.append([texts.coded(labels), texts.coded(order)])
    probabilities_N2 = 1 / (1 + np.exp(-np.stack(answers(model, test, asks, "order"))))
    changes_N = np.abs(probabilities_N2[:, 0] - probabilities_N2[:, 1])
    generator = np.random.default_rng(seed)
    resampled = changes_N[generator.integers(0, len(changes_N), (RESAMPLES, len(changes_N)))]
    for name, quantile in (("median", 0.5), ("95th percentile", 0.95)):
        low, high = bounds(float(np.quantile(changes_N, quantile)), np.quantile(resampled, quantile, axis=1))
        yield Row(
            "clauses shuffled", f"change of probability, {name}", float(np.quantile(changes_N, quantile)), low, high, len(asks)
        )


def trained_guard(run: Run, checkpoint: str, texts: Texts) -> GuardModel:
    """Return the model of a run, which numbers the clauses of ``texts``."""
    model = run.model(checkpoint)
    assert isinstance(model, GuardModel)
    model.clauses = texts.clauses
    return model


def untrained_guard(run: Run, texts: Texts) -> GuardModel:
    """Return the run's language model as it was stored, with all of its layers, unless its weights are random."""
    recipe = run.recipe
    assert isinstance(recipe.model, GuardSpec)
    text = recipe.model.encoders.text
    assert text is not None
    if text.weights.kind != "random":
        config = {key: value for key, value in text.config.items() if key != "num_hidden_layers"}
        text = text.model_copy(update={"config": config, "lora": None, "frozen": False})
    spec = recipe.model.model_copy(update={"encoders": recipe.model.encoders.model_copy(update={"text": text})})
    torch.manual_seed(recipe.seed)
    model = build_guard(spec, recipe.inputs, recipe.taxonomy)
    model.clauses = texts.clauses
    return model.eval()


def measure_held_out(run: Run, label: str, checkpoint: str, test: Test, seed: int) -> Iterator[Row]:
    """Yield AUROC of a label without a known target in training."""
    if label not in run.recipe.taxonomy.labels:
        raise UserError(f"--label: {label} is not a label of {run.path}: {', '.join(run.recipe.taxonomy.labels)}")
    dataset, place = Dataset(Path(run.recipe.data.dataset)), run.recipe.taxonomy.labels.index(label)
    trained = dataset.rows(run.recipe.data.train, run.recipe.data.where)
    if seen := int((~np.isnan(dataset.targets([label], trained))).sum()):
        raise UserError(f"{run.path}: it was trained on {seen:,} targets of {label}; hold out their items with data.where")
    texts, known_N = texts_of(run), ~np.isnan(test.targets_NL[:, place])
    asks = [[texts.own(place)] if known else [] for known in known_N]
    logits = np.concatenate(answers(trained_guard(run, checkpoint, texts), test, asks, "held out"))
    targets_N = (test.targets_NL[known_N, place] >= 0.5).astype(float)
    for name, value, low, high in areas(targets_N, {"never trained on": logits}, seed):
        yield Row(f"AUROC {label}", name, value, low, high, len(targets_N))


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, print the table, and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a guard's run")
    parser.add_argument("--checkpoint", default="best", help="best, last or a path (default: best)")
    parser.add_argument("--held-out", type=Path, metavar="RUN", help="run that was trained without any target of --label")
    parser.add_argument("--label", help="the label of --held-out")
    parser.add_argument("--encoder", type=Path, metavar="RUN", help="run of another model on the same dataset, to compare with")
    parser.add_argument("--split", default="test", help="split of the items (default: test)")
    parser.add_argument("--items", type=int, default=10**9, help="most items, chosen at random (default: all)")
    parser.add_argument("--no-zero-shot", action="store_true", help="leave the untrained language model out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if (options.held_out is None) != (options.label is None):
        parser.error("--held-out and --label belong together")
    run = Run(options.run)
    if not isinstance(run.recipe.model, GuardSpec):
        raise UserError(f"{run.path}: model.kind is {run.recipe.model.kind}; give a guard's run")
    texts, test = texts_of(run), read_test(run, options.split, options.items, options.seed)
    models = {"guard": trained_guard(run, options.checkpoint, texts)}
    if not options.no_zero_shot:
        models["zero-shot"] = untrained_guard(run, texts)
        models["zero-shot"].pieces = models["guard"].pieces
    encoder = None if options.encoder is None else Run(options.encoder)
    rows = list(measure_areas(models, texts, test, encoder, options.seed))
    rows += measure_pairs(models["guard"], texts, test)
    rows += measure_order(models["guard"], texts, test, options.seed)
    if options.held_out is not None:
        rows += measure_held_out(Run(options.held_out), options.label, options.checkpoint, test, options.seed)
    table = Table(box=None, header_style="bold")
    for column in ("part", "of", "value", "95 % interval", "count"):
        table.add_column(column, justify="right" if column == "count" else "left")
    for row in rows:
        table.add_row(row.part, row.of, f"{row.value:.3f}", f"{row.low:.3f} to {row.high:.3f}", f"{row.count:,}")
    Console(width=120).print(table)
    return rows


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
