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
import sys
import time
from pathlib import Path
product = Path(sys.argv[1])
product.parent.mkdir(parents=True, exist_ok=True)
product.write_text(sys.argv[2])
print(sys.argv[3])
"""


def starter(started, fails_at=None, command=WRITE):
    """Starts processes that write what the baselines' commands would."""

    def start(stage, log):
        started.append(stage.name)
        _, _, model = stage.name.partition("evaluate ")
        text = json.dumps({"overall": {"macro": {"average_precision": {"value": FOUND[model], "labels": 5}}}}) if model else ""
        code = "raise SystemExit(3)" if stage.name == fails_at else command
        with log.open("ab") as output:
            return subprocess.Popen([sys.executable, "-c", code, str(stage.product), text, stage.name], stdout=output)

    return start


def test_run_demo_runs_baselines_in_the_background_before_the_comparison(tmp_path):
    ran, started = [], []
    summary = run_demo(tmp_path, 0, runner(ran), starter(started))
    baselines = [stage.name for stage in stages(tmp_path, 0) if stage.baseline]
    assert started == baselines
    assert ran == [name for name in STAGES if name not in baselines]
    assert ran[-1] == "compare"
    assert list(summary.seconds) == STAGES
    assert summary.single_macro_ap == {modality: FOUND[modality] for modality in MODALITIES}
    assert (tmp_path / "baselines.log").read_text().split("\n")[:-1] == baselines


def test_run_demo_reports_a_baseline_that_fails(tmp_path):
    ran, started = [], []
    with pytest.raises(Failure, match=r"train image: exit status 3; its output is in .*baselines\.log"):
        run_demo(tmp_path, 0, runner(ran), starter(started, fails_at="train image"))
    assert "compare" not in ran
    assert started[-1] == "train image"
    run_demo(tmp_path, 0, runner(ran), starter(started))
    assert started[3:] == ["train image", "evaluate image", "train audio", "evaluate audio"]


def test_run_demo_ends_the_baselines_if_a_stage_fails(tmp_path):
    started, begin = [], starter([], command="import time; time.sleep(600)")

    def start_slowly(stage, log):
        """The stage fails after the process has started and before its starter returns."""
        started.append(begin(stage, log))
        time.sleep(0.5)
        return started[-1]

    with pytest.raises(Broken):
        run_demo(tmp_path, 0, runner([], breaks_at="policy"), start_slowly)
    assert [process.poll() for process in started] in ([], [-signal.SIGTERM])
