"""tracking.also: TensorBoard, MLflow and CSV hold what metrics.jsonl holds, also after a kill, and never end a run."""

import csv
import json
import logging
import math
import socket
import time

import pytest

from vigil_training.runs.run import open_run
from vigil_training.tracking import further_loggers
from vigil_training.tracking.further_loggers import MLflowRun, name_in_mlflow, open_further_loggers
from vigil_training.tracking.local_metrics import JsonLinesLogger

NAMES = ("tensorboard", "mlflow", "csv")


@pytest.fixture
def run(make_recipe, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(further_loggers, "INTERRUPTED_SECONDS", 60.0)
    recipe = make_recipe(tracking__also=NAMES)
    return open_run(recipe, recipe.model_dump_json(), tmp_path / "run")


def log_steps(run, start, steps, *, killed=False):
    """Log as a training that resumes at ``start``; lines of step 3 and 6 have a validation after them."""
    loggers = [JsonLinesLogger(run.metrics, start), *open_further_loggers(run, start)]
    for step in steps:
        lines = [{"epoch": 0, "train/loss": math.nan if step == 2 else 1 / step, "train/loss/cat": 3 / step}]
        lines += [{"epoch": 0, "validation/loss": 2 / step}] if step % 3 == 0 else []
        for line in lines:
            for logger in loggers:
                logger.log_metrics(line, step=step)
    for logger in loggers[1:]:
        logger.finish(1 if killed else 0)


def wanted(run):
    """Return metric and step of each number of metrics.jsonl, with its value."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {(name, line["step"]): value for line in lines for name, value in line.items() if name != "step"}


def in_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    found = [(tag, e.step, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
    return unique(found)


def in_csv(run):
    with (run.path / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return unique([(name, int(row["step"]), float(v)) for row in rows for name, v in row.items() if v and name != "step"])


def in_mlflow(run):
    from mlflow.tracking import MlflowClient

    record = json.loads((run.path / "mlflow.json").read_text())
    client = MlflowClient(tracking_uri=record["uri"])
    names = client.get_run(record["run_id"]).data.metrics
    return unique([(n, m.step, m.value) for n in names for m in client.get_metric_history(record["run_id"], n)])


def renamed(numbers):
    return {(name_in_mlflow(name), step): value for (name, step), value in numbers.items()}


def test_name_in_mlflow():
    assert name_in_mlflow("train/loss/spam") == "train/loss.spam"
    assert name_in_mlflow("validation/recall@10/text-image") == "validation/recall_10.text-image"
    assert [name_in_mlflow(name) for name in ("epoch", "train/loss")] == ["epoch", "train/loss"]


def unique(found):
    """Return what was found, and check that no number was logged twice but for the epoch of a validation."""
    counts = {(name, step): 0 for name, step, _ in found}
    for name, step, _ in found:
        counts[name, step] += 1
    assert {key for key, count in counts.items() if count > 1 and key[0] != "epoch"} == set()
    assert all(count <= 2 for count in counts.values())
    return {(name, step): value for name, step, value in found}


def test_further_loggers_hold_the_metrics_of_a_resumed_run_once(run):
    log_steps(run, 0, range(1, 6), killed=True)
    first = json.loads((run.path / "mlflow.json").read_text())
    log_steps(run, 3, range(4, 8))  # The checkpoint was of step 3: steps 4 and 5 are made once more.
    assert json.loads((run.path / "mlflow.json").read_text()) == first
    expected = {key: math.nan if value is None else value for key, value in wanted(run).items()}
    assert ("validation/loss", 6) in expected
    for found in (in_tensorboard(run), in_csv(run)):
        assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert in_mlflow(run) == pytest.approx(renamed(expected), rel=1e-6, nan_ok=True)


def test_mlflow_run_is_sent_completely_by_the_next_start(run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(MLflowRun, "_send", lambda self: None)  # A server that was gone.
        log_steps(run, 0, range(1, 5), killed=True)
    log_steps(run, 4, range(5, 7))
    expected = renamed({key: math.nan if value is None else value for key, value in wanted(run).items()})
    assert in_mlflow(run) == pytest.approx(expected, nan_ok=True)


def test_further_loggers_that_fail_warn_once_and_do_not_stop(run, caplog, monkeypatch):
    (run.path / "tensorboard").write_text("not a folder")
    (run.path / "csv").write_text("not a folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://host")
    with caplog.at_level(logging.WARNING, "vigil.track"):
        log_steps(run, 0, range(1, 4))
    warnings = [record.getMessage() for record in caplog.records]
    assert sorted(line.split(":")[0] for line in warnings) == sorted(NAMES)
    assert all("metrics.jsonl is still written" in line for line in warnings)
    assert len(run.metrics.read_text().splitlines()) == 4


def test_mlflow_server_that_never_answers_does_not_delay_the_training(run, monkeypatch):
    import mlflow.tracking  # noqa: F401 (what is measured is the server)

    monkeypatch.setattr(further_loggers, "INTERRUPTED_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        run.metrics.write_text("")
        logger = MLflowRun(run, 0)
        start = time.perf_counter()
        for step in range(1, 1001):
            logger.log_metrics({"epoch": 0, "train/loss": 1.0}, step)
        assert time.perf_counter() - start < 2
        start = time.perf_counter()
        logger.finish(1)
        assert time.perf_counter() - start < 5
