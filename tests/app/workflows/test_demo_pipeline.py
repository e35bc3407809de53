"""The demonstration: each stage runs once, an interrupted one resumes, and the results are summarised."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vigil.workflows.demo_pipeline import run_demo, stages
from vigil_data.errors import Failure, UserError
from vigil_data.items import MODALITIES

STAGES = [stage.name for stage in stages(Path(), 0)]
FOUND = {"fused": 0.95, "text": 0.5, "image": 0.4, "audio": 0.3}


class Broken(Exception):
    pass


def runner(ran, breaks_at=None):
    """Writes what the commands would."""

    def run(stage, number, total):
        assert (number, total) == (1 + STAGES.index(stage.name), len(STAGES))
        if stage.name == breaks_at:
            raise Broken
        ran.append(stage.name)
        stage.product.parent.mkdir(parents=True, exist_ok=True)
        _, _, model = stage.name.partition("evaluate ")
        text = json.dumps({"overall": {"macro": {"average_precision": {"value": FOUND[model], "labels": 5}}}}) if model else ""
        stage.product.write_text(text)

    return run


def test_run_demo_runs_the_stages_in_order_and_summarises_them(tmp_path):
    ran = []
    summary = run_demo(tmp_path / "demo", 0, runner(ran))
    assert ran == [stage.name for stage in stages(tmp_path / "demo", 0)]
    assert summary.fused_macro_ap == 0.95
    assert summary.single_macro_ap == {modality: FOUND[modality] for modality in MODALITIES}
    assert list(summary.seconds) == ran
    written = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert written == summary._asdict()


def test_run_demo_resumes_after_the_last_finished_stage(tmp_path):
    first, second = [], []
    with pytest.raises(Broken):
        run_demo(tmp_path, 0, runner(first, breaks_at="train image"))
    run_demo(tmp_path, 0, runner(second))
    assert second[0] == "train image"
    assert first + second == [stage.name for stage in stages(tmp_path, 0)]


def test_run_demo_repeats_only_stages_whose_product_is_gone(tmp_path):
    run_demo(tmp_path, 0, runner([]))
    ran = []
    run_demo(tmp_path, 0, runner(ran))
    assert ran == []
    (tmp_path / "scores.parquet").unlink()
    run_demo(tmp_path, 0, runner(ran))
    assert ran == ["score"]


def test_run_demo_refuses_a_folder_with_another_seed(tmp_path):
    run_demo(tmp_path, 0, runner([]))
    with pytest.raises(UserError, match="a demonstration with seed 0; name another folder with --dir"):
        run_demo(tmp_path, 1, runner([]))


def test_run_demo_refuses_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="neither a demonstration nor an empty folder"):
        run_demo(tmp_path, 0, runner([]))
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


WRITE = """
import json
import sys
import time
from pathlib import Path
log, fails_at, products = json.loads(sys.argv[1])
for line in sys.stdin:
    name, product, text = products[line.strip()]
    with Path(log).open("a") as output:
        print(name, file=output)
    if name == fails_at:
        raise SystemExit(3)
    product = Path(product)
    product.parent.mkdir(parents=True, exist_ok=True)
    product.write_text(text)
    print("ended", flush=True)
"""


def starter(folder, fails_at=None, program=WRITE):
    """Starts a process that writes what commands would, and their stages into the log."""

    def written(name):
        _, _, model = name.partition("evaluate ")
        return json.dumps({"overall": {"macro": {"average_precision": {"value": FOUND[model], "labels": 5}}}}) if model else ""

    def start(log):
        planned = stages(folder, 0)
        products = {json.dumps(stage.command): (stage.name, str(stage.product), written(stage.name)) for stage in planned}
        command = [sys.executable, "-c", program, json.dumps([str(log), fails_at, products])]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    return start


def in_background(folder):
    return [stage.name for stage in stages(folder, 0) if stage.background]


def test_run_demo_runs_stages_in_the_background_when_what_they_need_has_ended(tmp_path):
    ran, started = [], tmp_path / "background.log"

    def run(stage, number, total):
        if stage.name in ("dataset", "export"):
            time.sleep(0.5)
            logged = started.read_text().split() if started.exists() else []
            assert ("train" in logged, "suite" in logged) == (stage.name == "export", False)
        runner(ran)(stage, number, total)

    summary = run_demo(tmp_path, 0, run, starter(tmp_path))
    assert started.read_text().splitlines() == in_background(tmp_path)
    assert ran == [name for name in STAGES if name not in in_background(tmp_path)]
    assert ran[-1] == "compare"
    assert list(summary.seconds) == STAGES
    assert summary.single_macro_ap == {modality: FOUND[modality] for modality in MODALITIES}


def test_run_demo_reports_a_stage_in_the_background_that_fails(tmp_path):
    ran, log = [], tmp_path / "background.log"
    with pytest.raises(Failure, match=r"train image: exit status 3; its output is in .*background\.log"):
        run_demo(tmp_path, 0, runner(ran), starter(tmp_path, fails_at="train image"))
    assert "compare" not in ran
    failed = log.read_text().splitlines()
    assert failed == in_background(tmp_path)[: 1 + in_background(tmp_path).index("train image")]
    log.unlink()
    run_demo(tmp_path, 0, runner(ran), starter(tmp_path))
    assert log.read_text().splitlines() == in_background(tmp_path)[len(failed) - 1 :]


@pytest.mark.parametrize("breaks_at", ["dataset", "policy"])
def test_run_demo_ends_the_background_if_a_stage_fails(tmp_path, breaks_at):
    processes = []

    def start(log):
        processes.append(starter(tmp_path, program="import time; time.sleep(600)")(log))
        return processes[-1]

    with pytest.raises(Broken):
        run_demo(tmp_path, 0, runner([], breaks_at=breaks_at), start)
    assert [process.returncode for process in processes] == [-signal.SIGTERM]
