"""The demonstration: the commands from an empty folder to a verified bundle, and a summary of their results.

Each stage is a `vigil` command. Finished stages are not repeated, so the same call resumes an interrupted demonstration.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock
from typing import Any, NamedTuple

from vigil.workflows.shipped_recipes import RECIPES
from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import write_json
from vigil_data.items import MODALITIES

COMPARE = "compare"
"""The stage that needs a baseline."""

BACKGROUND_LOG = "background.log"
"""Output of the stages in the background."""


class Stage(NamedTuple):
    """A command, and the file whose existence shows that it has finished.

    Attributes:
        name: name of the stage.
        command: arguments of `vigil`.
        product: the file.
        background: whether it can run at the same time as later stages; no stage but ``compare`` needs it.
        after: the stage that must end before a stage in the background starts.
    """

    name: str
    command: Sequence[str]
    product: Path
    background: bool = False
    after: str = "dataset"


class Summary(NamedTuple):
    """Results of a demonstration, also written to ``summary.json``.

    Attributes:
        fused_macro_ap: macro average precision of the fused model on the test split.
        single_macro_ap: the same for each modality, of a model trained on that modality alone.
        seconds: duration of each stage; baselines and functional tests run at the same time as the other stages.
        total_seconds: duration of all stages together.
        report: evaluation report of the fused model.
        comparison: comparison of the text model with the fused model.
        suite: results of the bundle in each functional test.
        bundle: the verified bundle.
    """

    fused_macro_ap: float
    single_macro_ap: dict[str, float]
    seconds: dict[str, float]
    total_seconds: float
    report: str
    comparison: str
    suite: str
    bundle: str


def stages(folder: Path, seed: int) -> list[Stage]:
    """Return the demonstration's commands in order.

    Args:
        folder: the folder to write.
        seed: random seed of the dataset and of training.
    """
    dataset, bundle, scores = folder / "dataset", folder / "bundle", folder / "scores.parquet"
    planned = [Stage("dataset", ["data", "demo", str(dataset), "--seed", str(seed)], dataset / "items.lance")]
    for name in ("fused", *reversed(MODALITIES)):  # The text model is last: it reads the token cache that the fused one fills.
        recipe = _shown(RECIPES / ("demo.yaml" if name == "fused" else f"demo-{name}.yaml"))
        values = [f"data.dataset={dataset}", f"seed={seed}"]
        background, train = name != "fused", ["train", recipe, "--run", str(folder / name), *values]
        planned.append(Stage(f"train {name}", train, folder / name / "thresholds.json", background))
        if name == "fused":
            policy = _shown(RECIPES / "policies" / "demo.yaml")
            planned.append(Stage("policy", ["policy", "compile", policy, str(folder / name)], folder / name / "policy.json"))
        planned.append(Stage(f"evaluate {name}", ["evaluate", str(folder / name)], _metrics_file(folder, name), background))
    comparison, suite = folder / "comparison", folder / "suite"
    # Metrics of ranking: the thresholds of the two models lie at different false-positive rates.
    compare = ["compare", str(folder / "text"), str(folder / "fused"), "--metrics", "average_precision,auroc"]
    compare += ["--to", str(comparison)]
    return [
        *planned,
        Stage("export", ["export", str(folder / "fused"), "--to", str(bundle)], bundle / "manifest.json"),
        Stage("verify", ["verify", str(bundle)], bundle / "manifest.json"),
        Stage("suite", ["suite", "run", str(bundle), "demo", "--to", str(suite)], suite / "suite.json", True, "export"),
        Stage("score", ["score", str(bundle), str(dataset), "--to", str(scores), "--split", "test"], scores),
        Stage(COMPARE, compare, comparison / "comparison.json"),
    ]


def run_demo(
    folder: Path,
    seed: int,
    run: Callable[[Stage, int, int], None],
    start: Callable[[Path], "subprocess.Popen[str]"] | None = None,
) -> Summary:
    """Run the stages that have not finished yet, and summarise the results.

    Args:
        folder: the folder to write; it may hold an interrupted or finished demonstration with the same seed.
        seed: random seed of the dataset and of training.
        run: called with a stage, its number from 1, and the number of stages; raises if the stage fails.
        start: starts a process that runs the commands it reads, JSON arrays of arguments in lines of standard input, with their
            output in a log file, and prints a line as each ends; it runs the stages in the background (default: all stages run
            in order).

    Raises:
        UserError: if the folder holds a demonstration with another seed, or something else.
        Failure: if a stage in the background fails.
    """
    record = folder / "stages.json"
    known = _read_record(folder, record, seed)
    done, total, begin, lock = known["seconds"], known["total_seconds"], time.perf_counter(), Lock()
    folder.mkdir(parents=True, exist_ok=True)
    planned = stages(folder, seed)
    ended = {stage.name: Event() for stage in planned}

    def finish(stage: Stage | None, seconds: float) -> None:
        with lock:
            if stage is not None:
                done[stage.name] = round(seconds, 1)
            ordered = {stage.name: done[stage.name] for stage in planned if stage.name in done}
            elapsed = round(total + time.perf_counter() - begin, 1)
            write_json(record, {"seed": seed, "seconds": ordered, "total_seconds": elapsed})
        if stage is not None:
            ended[stage.name].set()

    finish(None, 0.0)
    pending = [(number, stage) for number, stage in enumerate(planned, 1) if not (stage.name in done and stage.product.exists())]
    for name in {*ended} - {stage.name for _, stage in pending}:
        ended[name].set()
    background = [stage for _, stage in pending if stage.background and start is not None]
    with _started(background, folder / BACKGROUND_LOG, start, finish, ended) as wait:
        for number, stage in pending:
            if stage in background:
                continue
            if stage.name == COMPARE:
                wait()
            began = time.perf_counter()
            run(stage, number, len(planned))
            finish(stage, time.perf_counter() - began)
    record_now = json.loads(record.read_text())
    summary = Summary(
        _macro_ap(folder, "fused"),
        {modality: _macro_ap(folder, modality) for modality in MODALITIES},
        record_now["seconds"],
        record_now["total_seconds"],
        str(_metrics_file(folder, "fused").with_name("report.html")),
        str(folder / "comparison" / "comparison.html"),
        str(folder / "suite" / "suite.html"),
        str(folder / "bundle"),
    )
    write_json(folder / "summary.json", summary._asdict())
    return summary


@contextmanager
def _started(
    background: Sequence[Stage],
    log: Path,
    start: Callable[[Path], "subprocess.Popen[str]"] | None,
    finish: Callable[[Stage, float], None],
    ended: Mapping[str, Event],
) -> Iterator[Callable[[], None]]:
    """Run stages in the background, each when another has ended; yield a function that waits for them, which the exit calls too.

    If the block fails, the process of the stages is terminated.
    """
    if start is None or not background:
        yield lambda: None
        return
    process = start(log)

    def run_stages() -> None:
        for stage in background:
            ended[stage.after].wait()
            began = time.perf_counter()
            if not _tell(process, stage.command):
                raise Failure(f"{stage.name}: exit status {process.wait()}; its output is in {log}")
            finish(stage, time.perf_counter() - began)

    with ThreadPoolExecutor(1) as pool, process:
        running = pool.submit(run_stages)
        try:
            yield running.result
            running.result()
        except BaseException:
            process.terminate()
            for event in ended.values():  # The thread must not wait for a stage that never comes.
                event.set()
            raise


def _tell(process: "subprocess.Popen[str]", command: Sequence[str]) -> bool:
    """Have a process run a command; return whether it succeeded."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        print(json.dumps(command), file=process.stdin, flush=True)
    except BrokenPipeError:
        return False
    return bool(process.stdout.readline())


def _read_record(folder: Path, record: Path, seed: int) -> dict[str, Any]:
    """Return the finished stages with their durations in seconds, and the total duration so far."""
    if not record.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder}: neither a demonstration nor an empty folder; name another one with --dir")
        return {"seconds": {}, "total_seconds": 0.0}
    known: dict[str, Any] = json.loads(record.read_text())
    if known["seed"] != seed:
        raise UserError(f"{folder}: holds a demonstration with seed {known['seed']}; name another folder with --dir")
    return known


def _metrics_file(folder: Path, name: str) -> Path:
    return folder / name / "evaluation" / "test" / "metrics.json"


def _macro_ap(folder: Path, name: str) -> float:
    return float(json.loads(_metrics_file(folder, name).read_text())["overall"]["macro"]["average_precision"]["value"])


def _shown(path: Path) -> str:
    """Return a path relative to the working folder where it is inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
