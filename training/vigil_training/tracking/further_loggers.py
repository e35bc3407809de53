"""``tracking.also``: the metrics of a run in TensorBoard, MLflow or a CSV file, in addition to ``metrics.jsonl`` and W&B.

They get numbers and the names of metrics, whatever ``tracking.content`` is. A resumed run continues each of them without doubled
steps.
"""

import json
import logging
import os
import queue
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vigil_data.filesystem import write_json
from vigil_training.runs.run import Run
from vigil_training.tracking.fault_tolerant import FaultTolerantLogger

log = logging.getLogger("vigil.track")

Line = tuple[Mapping[str, float], int]
"""Metrics, and the optimizer step that they are of."""

QUEUE_LINES = 10_000
FINISHED_SECONDS = 30.0
"""Time to send the rest of a run that has finished to MLflow."""

INTERRUPTED_SECONDS = 3.0
"""Time to send the rest of a run that was stopped; the next start sends what is missing."""

FLUSH_SECONDS = 5
_IMPORT_LOCK = threading.Lock()  # Two threads that import MLflow for the first time fail on its circular imports.


def open_further_loggers(run: Run, step: int) -> list[FaultTolerantLogger]:
    """Open the loggers of ``tracking.also``.

    Args:
        run: the run; ``metrics.jsonl`` in its folder has the lines up to ``step``.
        step: optimizer steps already made.
    """
    makers: dict[str, Callable[[Run, int], FaultTolerantLogger]] = {
        "tensorboard": TensorBoardFiles,
        "mlflow": MLflowRun,
        "csv": CsvFile,
    }
    return [makers[name](run, step) for name in run.recipe.tracking.also]


class _LightningFile(FaultTolerantLogger):
    """Writes files through a logger of Lightning.

    Args:
        run: the run.
        step: optimizer steps already made.
    """

    def __init__(self, run: Run, step: int) -> None:
        super().__init__()
        self._logger: Any = None
        self._try(lambda: self._open(run, step))

    def _open(self, run: Run, step: int) -> None:
        raise NotImplementedError

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write a line at once, so that a process that is killed loses none."""
        self._try(lambda: self._write(metrics, step))

    def _write(self, metrics: Mapping[str, float], step: int | None) -> None:
        self._logger.log_metrics(metrics, step)

    def finish(self, exit_code: int) -> None:
        """Close the files; the next start of the run continues them."""
        self._try(lambda: self._logger.finalize("success" if exit_code == 0 else "failed"))


class TensorBoardFiles(_LightningFile):
    """Event files in ``tensorboard/`` of the run folder, one for each start; TensorBoard hides what a later start repeats."""

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "tensorboard"

    def _open(self, run: Run, step: int) -> None:
        from lightning.fabric.loggers.tensorboard import TensorBoardLogger

        options: dict[str, Any] = {"purge_step": step + 1, "flush_secs": FLUSH_SECONDS}
        self._logger = TensorBoardLogger(run.path, self.name, version="", **options)

    def _write(self, metrics: Mapping[str, float], step: int | None) -> None:
        super()._write(metrics, step)
        self._logger.experiment.flush()


class CsvFile(_LightningFile):
    """``csv/metrics.csv`` in the run folder, which a resumed run writes again from ``metrics.jsonl``."""

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    def _open(self, run: Run, step: int) -> None:
        from lightning.fabric.loggers.csv_logs import CSVLogger

        del step  # metrics.jsonl ends with it
        # Lightning's logger deletes the rows of a former start.
        shutil.rmtree(run.path / self.name, ignore_errors=True)
        self._logger = CSVLogger(run.path, self.name, version="", flush_logs_every_n_steps=1)
        for metrics, at in read_lines(run):
            self._logger.experiment.log_metrics(dict(metrics), at)
        self._logger.save()


class MLflowRun(FaultTolerantLogger):
    """One MLflow run for a run folder: on the server of ``MLFLOW_TRACKING_URI``, or in ``mlruns/`` of the run folder.

    A thread sends, so that a server that is slow or gone does not slow the training. A resumed run sends what the server lacks.

    Args:
        run: the run.
        step: optimizer steps already made.
    """

    def __init__(self, run: Run, step: int) -> None:
        super().__init__()
        del step  # metrics.jsonl ends with it
        # MLflow reads its environment at its first import.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._run = run
        self._uri = os.environ.get("MLFLOW_TRACKING_URI") or (run.path / "mlruns").resolve().as_uri()
        self._lines: queue.Queue[Line | None] = queue.Queue(QUEUE_LINES)
        self._exit_code = 1
        for line in read_lines(run):
            self._put(line)
        self._thread = threading.Thread(target=lambda: self._try(self._send), name="mlflow", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "mlflow"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Hand a line to the thread."""
        self._put((dict(metrics), step or 0))

    def finish(self, exit_code: int) -> None:
        """End the MLflow run, within a bounded time."""
        self._exit_code = exit_code
        self._put(None)
        self._thread.join(FINISHED_SECONDS if exit_code == 0 else INTERRUPTED_SECONDS)
        if self._thread.is_alive() and exit_code == 0:
            log.warning("mlflow: %s: not everything was sent in time; metrics.jsonl has all of it", self._uri)

    def _put(self, line: Line | None) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._try(lambda: _raise(TimeoutError(f"{self._uri} takes lines more slowly than the training makes them")))

    def _send(self) -> None:
        """Send lines until the run ends; those that the server has, from a former start, are left out."""
        with _IMPORT_LOCK:
            from mlflow.entities import Metric
            from mlflow.tracking import MlflowClient

        if self._uri.startswith("file:"):  # MLflow prefers databases, for which mlflow-skinny lacks the libraries.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient(tracking_uri=self._uri)
        id_ = self._open_run(client)
        sent = Counter(metric.step for metric in client.get_metric_history(id_, "epoch"))
        while (line := self._lines.get()) is not None:
            metrics, step = line
            if sent[step]:
                sent[step] -= 1
                continue
            now = int(time.time() * 1000)
            client.log_batch(id_, [Metric(name_in_mlflow(name), value, now, step) for name, value in metrics.items()])
        client.set_terminated(id_, "FINISHED" if self._exit_code == 0 else "KILLED")

    def _open_run(self, client: Any) -> str:
        """Create the MLflow run, or continue that of an earlier start on the same server, and return its id."""
        record, spec = self._run.path / "mlflow.json", self._run.recipe.tracking
        known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        if known.get("uri") == self._uri:
            client.update_run(known["run_id"], status="RUNNING")
            return str(known["run_id"])
        experiment = client.get_experiment_by_name(spec.project)
        experiment_id = client.create_experiment(spec.project) if experiment is None else experiment.experiment_id
        tags = {"vigil.recipe": self._run.recipe.name, **({"vigil.group": spec.group} if spec.group is not None else {})}
        id_ = str(client.create_run(experiment_id, tags=tags, run_name=self._run.path.name).info.run_id)
        write_json(record, {"uri": self._uri, "run_id": id_})
        return id_


def read_lines(run: Run) -> Iterator[Line]:
    """Yield the lines of ``metrics.jsonl``; null is NaN again."""
    for text in run.metrics.read_text().splitlines():
        line = json.loads(text)
        step = line.pop("step")
        yield {name: float("nan") if value is None else value for name, value in line.items()}, step


def name_in_mlflow(name: str) -> str:
    """Return the name of a metric as MLflow allows it, such as ``train/loss.spam`` for ``train/loss/spam``.

    Its file store keeps each metric in a file, so that none can be the folder of another, as ``train/loss`` would be.
    """
    group, _, rest = name.partition("/")
    return re.sub(r"[^\w/. :-]", "_", f"{group}/{rest.replace('/', '.')}" if rest else name)


def _raise(error: Exception) -> None:
    raise error
