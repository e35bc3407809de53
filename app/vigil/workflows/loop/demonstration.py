"""The loop's demonstration: weeks of simulated traffic of known truth, in which a slang and a picture style are new.

Each week is scored by the champion, sampled, answered by simulated reviewers of known error, and measured. In the week after the
first alarm of drift, items are mined as well, a challenger is trained from the champion and promoted if it passes.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

from vigil.workflows.shipped_recipes import RECIPES
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.demo.traffic import FIRST_DAY, past_posts, simulate_weeks
from vigil_data.errors import UserError
from vigil_data.filesystem import replaced_file, write_file, write_json
from vigil_data.items import Item
from vigil_data.progress import Progress
from vigil_monitoring.estimates.label_answers import ANY
from vigil_monitoring.queues.queue import read_queue
from vigil_monitoring.report import TrueValue, TruthResult
from vigil_monitoring.results import Period, write_result

WEEKS, POSTS_PER_WEEK, PAST_POSTS = 12, 1000, 4000
SAMPLE, MINED = 200, 200
"""Items reviewed in each week, and mined in the week of the retraining."""

SENSITIVITY, SPECIFICITY = 0.95, 0.99
"""Probability that a simulated reviewer answers yes where a label applies, and no where it does not."""

TRAINING = ("training.token_cache=false", "training.epochs=3")
"""Changes of the shipped recipe: the cache would encode the posts of all weeks, which are in the dataset from the start."""

ACTION = "label"
"""The only action of the demonstration's policy."""

REVIEWERS = ("reviewer-1", "reviewer-2", "reviewer-3")

Run = Callable[[Sequence[str]], None]


class DemoFiles(NamedTuple):
    """Files of the demonstration in its folder."""

    folder: Path

    @property
    def dataset(self) -> Path:
        """Labelled posts of the past, and the posts of all weeks without targets."""
        return self.folder / "dataset"

    @property
    def truth(self) -> Path:
        """JSON: id of each post of the weeks to the labels that apply."""
        return self.folder / "truth.json"

    @property
    def traffic(self) -> Path:
        """Folder of one table of decisions for each week."""
        return self.folder / "traffic"

    @property
    def models(self) -> Path:
        """Folder of the champion's alias."""
        return self.folder / "models"

    @property
    def loop(self) -> Path:
        """Folder of the loop's iterations."""
        return self.folder / "loop"

    def loop_file(self, retrain: bool) -> Path:
        """File of the loop with or without retraining; both work in the same folder."""
        return self.folder / ("loop-retrain.yaml" if retrain else "loop.yaml")


def run_loop_demo(folder: Path, seed: int, vigil: Run, weeks: int = WEEKS) -> Path:
    """Run the demonstration, and return the dashboard; steps that are done are not repeated.

    Args:
        folder: the folder to write; new, empty, or of an interrupted demonstration with the same seed.
        seed: random seed.
        vigil: runs a command; raises if it fails.
        weeks: number of weeks.

    Raises:
        UserError: if the folder holds something else, or a demonstration with another seed.
    """
    files = DemoFiles(folder)
    done = _DoneSteps(folder, {"seed": seed, "weeks": weeks})
    done.once("dataset", partial(write_posts, files, seed, weeks))
    recipe, policy = str(RECIPES / "frozen-quickstart.yaml"), str(RECIPES / "policies" / "demo-loop.yaml")
    run, bundle = str(folder / "champion"), str(folder / "bundle")
    values = [f"data.dataset={files.dataset}", f"seed={seed}", *TRAINING]
    done.once("train", partial(vigil, ["train", recipe, "--run", run, *values]))
    done.once("policy", partial(vigil, ["policy", "compile", policy, run]))
    done.once("export", partial(vigil, ["export", run, "--to", bundle]))
    first = ["--to", "champion", "--models", str(files.models), "--without-comparison", "--without-experiment"]
    done.once("promote", partial(vigil, ["promote", bundle, *first]))
    for retrain in (False, True):
        write_file(files.loop_file(retrain), loop_yaml(files, recipe, policy, retrain))
    retrained = False
    for week in range(1, weeks + 1):
        retrain = not retrained and bool(_alarms(files, week - 1))
        retrained = retrained or retrain
        loop = ["loop", "run", str(files.loop_file(retrain))]
        done.once(f"score week {week}", partial(score_week, files, week, vigil))
        done.once(f"truth of week {week}", partial(write_truth, files, week))
        done.once(f"sample week {week}", partial(vigil, loop))
        done.once(f"answer week {week}", partial(answer, files, week, seed))
        done.once(f"measure week {week}", partial(vigil, loop))
    return files.loop / "report.html"


def write_posts(files: DemoFiles, seed: int, weeks: int) -> None:
    """Write the dataset, and the truth of the weeks' posts."""
    truth: dict[str, list[str]] = {}

    def posts() -> Iterator[Item]:
        for simulated in simulate_weeks(weeks, POSTS_PER_WEEK, seed):
            truth[simulated.item.id] = [label for label, applies in simulated.truth.items() if applies]
            yield simulated.item

    total = PAST_POSTS + weeks * POSTS_PER_WEEK
    made = itertools.chain(past_posts(PAST_POSTS, seed), posts())
    with Progress("drawing") as progress:
        write(files.dataset, made, progress=lambda count: progress("drawing", count, total))
    write_json(files.truth, truth)


def score_week(files: DemoFiles, week: int, vigil: Run) -> None:
    """Score the posts of a week with the champion, and write their decisions with the posts' times and exposures."""
    scores = files.folder / "scores" / f"week{week:02d}.parquet"
    scores.parent.mkdir(exist_ok=True)
    vigil(["score", str(files.models / "champion"), str(files.dataset), "--where", f"week = {week}", "--to", str(scores)])
    dataset = Dataset(files.dataset)
    columns = ["id", "created_at", "author", "content_type", "language", "exposure"]
    facts = dataset.table(columns, dataset.rows(None, f"week = {week}"))
    decisions = pq.read_table(scores).drop_columns(["evidence", "cut"])
    facts = facts.rename_columns({"created_at": "time"}).take(pc.index_in(decisions["id"], facts["id"].combine_chunks()))
    for name in facts.column_names[1:]:
        decisions = decisions.append_column(name, facts[name])
    files.traffic.mkdir(exist_ok=True)
    with replaced_file(files.traffic / f"week{week:02d}.parquet") as to:
        pq.write_table(decisions.sort_by("time"), to)


def write_truth(files: DemoFiles, week: int) -> None:
    """Write the true prevalence, precision and recall of a week as a result, which the dashboard draws next to the estimates."""
    truth: Mapping[str, Sequence[str]] = json.loads(files.truth.read_text(encoding="utf-8"))
    table = pq.read_table(files.traffic / f"week{week:02d}.parquet", columns=["id", "action"])
    labels = [truth[id_] for id_ in table["id"].to_pylist()]
    acted = [action == ACTION for action in table["action"].to_pylist()]
    rows = [("prevalence", name, [name in of for of in labels]) for name in sorted(set(itertools.chain(*labels)))]
    rows += [("prevalence", ANY, [bool(of) for of in labels])]
    rows += [("precision", ACTION, [bool(of) for of, action in zip(labels, acted, strict=True) if action])]
    rows += [("recall", ACTION, [action for of, action in zip(labels, acted, strict=True) if of])]
    values = tuple(TrueValue(metric, name, sum(found) / len(found)) for metric, name, found in rows if found)
    monday = FIRST_DAY + timedelta(weeks=week - 1)
    results = files.loop / "results"
    results.mkdir(parents=True, exist_ok=True)
    period = Period(monday, monday + timedelta(days=6))
    write_result(results / f"{week:04d}-truth.json", "truth", period, asdict(TruthResult(values)))


def answer(files: DemoFiles, week: int, seed: int) -> None:
    """Answer the queues of a week's iteration as reviewers would, each of whom answers every question."""
    truth: Mapping[str, Sequence[str]] = json.loads(files.truth.read_text(encoding="utf-8"))
    time = FIRST_DAY + timedelta(weeks=week)
    for file in sorted((files.loop / f"{week:04d}").glob("*.jsonl")):
        if file.stem.endswith("-reviews"):
            continue
        table, lines = read_queue(file).table, dict[tuple[str, str, str], str]()
        for id_, labels in zip(table["id"].to_pylist(), table["ask"].to_pylist(), strict=True):
            rng = Random(f"answers {seed} {id_}")  # noqa: S311 (it guards nothing)
            for reviewer in REVIEWERS:
                for label in labels:
                    applies = label in truth[id_]
                    value = int((rng.random() < SENSITIVITY) if applies else (rng.random() >= SPECIFICITY))
                    row: dict[str, Any] = {"id": id_, "label": label, "value": value, "reviewer": reviewer}
                    row |= {"time": f"{time}T12:00:00Z", "minutes": round(rng.uniform(0.05, 0.4), 2)}
                    lines[id_, label, reviewer] = json.dumps(row)
        write_file(file.with_name(f"{file.stem}-reviews.jsonl"), "".join(line + "\n" for line in lines.values()))


def loop_yaml(files: DemoFiles, recipe: str, policy: str, retrain: bool) -> str:
    """Return the file of the loop."""
    reference = f"{FIRST_DAY}..{FIRST_DAY + timedelta(weeks=3, days=-1)}"
    training = f"{{recipe: {recipe}, overrides: [{', '.join(TRAINING)}]}}" if retrain else "null"
    return f"""# Written by `vigil demo loop`.
name: demo
folder: {files.loop}
traffic: {files.traffic}
dataset: {files.dataset}
models: {files.models}
first: {FIRST_DAY}
sample: {{design: prevalence, budget: {SAMPLE}}}
mine: {f"{{budget: {MINED}}}" if retrain else "null"}
reference: {reference}
retrain: {training}
policy: {policy}
compare: {{metrics: average_precision, tolerance: ["0.02"]}}
promote: {{automatic: true}}
"""


def _alarms(files: DemoFiles, week: int) -> list[str]:
    """Return the alarms of drift of a week's iteration, each in a sentence."""
    result = files.loop / "results" / f"{week:04d}-drift.json"
    if not result.is_file():
        return []
    return [alarm["sentence"] for alarm in json.loads(result.read_text(encoding="utf-8"))["alarms"]]


class _DoneSteps:
    """Steps that are done, in ``steps.json``."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._file, self._settings = folder / "steps.json", dict(settings)
        self._names: list[str] = []
        if self._file.is_file():
            known = json.loads(self._file.read_text(encoding="utf-8"))
            if known["settings"] != self._settings:
                raise UserError(f"{folder}: holds a demonstration with {known['settings']}; name another folder with --dir")
            self._names = known["done"]
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder}: neither this demonstration nor an empty folder; name another one with --dir")
        folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def once(self, name: str, step: Callable[[], Any]) -> None:
        """Run a step unless it is done."""
        if name not in self._names:
            step()
            self._names.append(name)
            self._write()

    def _write(self) -> None:
        write_json(self._file, {"settings": self._settings, "done": self._names})
