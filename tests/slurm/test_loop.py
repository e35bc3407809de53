"""The improvement loop on a real Slurm cluster: its training is a job, and a job behind it takes the iteration to its end."""

import io
import json
import re
from contextlib import redirect_stdout

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_run

from vigil.cli import build
from vigil.workflows.export_run import export_run
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.items import Item
from vigil_training.recipe.recipe import Recipe

pytestmark = pytest.mark.slurm

POSTS = 40


class LoopFolder:
    """A loop in the working folder of its commands: a champion, its traffic of two days, and the posts as unlabelled items."""

    def __init__(self, cluster, repository, material, trained, folder):
        self.cluster, self.folder = cluster, folder
        self.truth = {f"post-{n}": item for n, item in enumerate(tiny_run.make_items(POSTS, "train", 9))}
        posts = [Item(id_, item.text, item.image, (), {}, item.columns) for id_, item in self.truth.items()]
        write(folder / "dataset", [*Dataset(material / "dataset").take(range(200)), *posts])
        random = np.random.default_rng(0)
        times = pa.array([f"2026-11-0{1 + n % 2}T10:00:00Z" for n in range(POSTS)]).cast(pa.timestamp("us", "UTC"))
        scores = {f"probability.{label}": random.uniform(0.05, 0.95, POSTS).astype(np.float32) for label in ("cat", "bright")}
        pq.write_table(pa.table({"id": list(self.truth), "time": times, **scores}), folder / "traffic.parquet")
        changes = {"training__epochs": 1, "evaluation__replicates": 200, "export": {"formats": ["onnx"], "examples": 4}}
        values = tiny_run.recipe_values(material, **changes)
        (folder / "recipe.yaml").write_text(Recipe.model_validate(values).model_dump_json())
        (folder / "loop.yaml").write_text(
            "{name: tiny, folder: loop, traffic: traffic.parquet, dataset: dataset, days: 2, first: 2026-11-01,\n"
            " sample: {budget: 8}, mine: {budget: 4}, retrain: {recipe: recipe.yaml, warm_start: false},\n"
            " compare: {tolerance: ['1'], metrics: average_precision}, promote: {automatic: true},\n"
            f" slurm: {{profile: {repository / 'slurm' / 'sites' / 'dev-cluster.yaml'}}}}}\n"
        )
        export_run(trained, folder / "champion", formats=["onnx"], examples=4)
        self.vigil("promote", "champion", "--without-comparison", "--without-experiment")

    def vigil(self, *words):
        """Run a command in this process, which spares the imports, and return what it prints; jobs are processes of their own."""
        with redirect_stdout(io.StringIO()) as printed:
            assert not build()(list(map(str, words)), prog_name="vigil", standalone_mode=False)
        return printed.getvalue()

    def run(self):
        """Run the loop, and return what it prints and the jobs that train and that continue it, if it submits them."""
        output = self.vigil("loop", "run", "loop.yaml")
        found = re.search(r"job (\d+) continues the loop after job (\d+)", output)
        return output, *(found.group(2, 1) if found else (None, None))

    def state(self):
        [state] = json.loads(self.vigil("loop", "status", "loop.yaml", "--json"))
        return state

    def answer(self):
        """Answer all questions of both queues."""
        for name in ("sample", "mined"):
            lines = []
            for line in (self.folder / "loop" / "0001" / f"{name}.jsonl").read_text().splitlines():
                row = json.loads(line)
                for label in row["ask"]:
                    value = self.truth[row["id"]].targets[label]
                    answer = {"id": row["id"], "label": label, "value": "cannot tell" if value is None else value}
                    lines.append(json.dumps({**answer, "reviewer": "ann", "time": "2026-11-03T00:00:00Z"}))
            (self.folder / "loop" / "0001" / f"{name}-reviews.jsonl").write_text("\n".join(lines) + "\n")

    def logs(self):
        return "\n".join(f"{file}:\n{file.read_text()}" for file in sorted(self.folder.glob("loop/0001/**/slurm/*.log")))


def test_loop_trains_as_a_job_and_is_continued_by_the_job_behind_it(
    cluster, repository, material, trained, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.env[name])
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    loop = LoopFolder(cluster, repository, material, trained, tmp_path)
    output, *jobs = loop.run()
    assert "questions of sample.jsonl are answered" in output
    assert jobs == [None, None]
    loop.answer()

    # A training that fails takes the job behind it along; the same command submits both again.
    _, lost, behind = loop.run()
    assert f"afterok:{lost}" in cluster.job(behind)["Dependency"]
    cluster.command("scancel", lost)
    cluster.wait(behind, {"CANCELLED"}, 120)
    _, training, behind = loop.run()
    assert {training, behind} & {lost} == set()
    output, *again = loop.run()
    assert f"waiting: job {training} trains" in output
    assert again == [None, None], "one job behind the training is enough"

    cluster.wait(behind, {"COMPLETED", "FAILED", "CANCELLED"}, 600)
    state = loop.state()
    assert state["outcome"] == "promoted", loop.logs()
    assert cluster.job(training)["JobState"] == cluster.job(behind)["JobState"] == "COMPLETED"
    assert list(state["seconds"])[-8:] == [
        *("merge sample", "merge mined", "train", "evaluate", "export", "compare", "promote", "report"),
    ]
    assert (tmp_path / "models" / "champion").resolve() == (tmp_path / "loop" / "0001" / "bundle").resolve()
    assert (tmp_path / "loop" / "report.html").is_file()
    reviewed = {json.loads(line)["id"] for name in ("sample", "mined") for line in queue_lines(tmp_path, name)}
    targets = {item.id: item.targets for item in Dataset(tmp_path / "dataset").take(range(200, 200 + POSTS))}
    assert {id_ for id_, of in targets.items() if any(value is not None for value in of.values())} <= reviewed
    run = json.loads((tmp_path / "loop" / "0001" / "run" / "environment.json").read_text())
    assert run["slurm"]["job"] == training
    assert {job["job"] for job in json.loads(loop.vigil("jobs", "--json"))} >= {training}


def queue_lines(folder, name):
    return (folder / "loop" / "0001" / f"{name}.jsonl").read_text().splitlines()
