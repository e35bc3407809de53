"""`vigil submit`: checks on the login node, files of the run folder, and the job that Slurm receives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, directives

from vigil_data.errors import UserError
from vigil_slurm.submit import MAX_ARRAY_TASKS, parse_array
from vigil_training.recipe.resolve import read_recipe, resolve_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = str(REPOSITORY / "recipes" / "demo-text.yaml")
DDP = ("strategy.kind=ddp", "--nodes", "2", "--gpus-per-node", "4")
HEAVY = ("torch", "lightning", "numpy", "pyarrow", "lance", "transformers", "wandb", "deepspeed")


class Login:
    """A login node: a folder to work in, and fakes of Slurm's commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.slurm = folder / "work", FakeSlurm(folder / "fakes", "sbatch", "squeue", "scontrol", "srun")
        self.folder.mkdir()
        self.slurm.script("sbatch", "echo '41;cluster'")

    def submit(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.slurm.vigil("submit", RECIPE, *arguments, cwd=self.folder, **variables)

    def run_job(self, run: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a submitted batch script as Slurm does."""
        variables = {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "n1", **variables}
        self.slurm.script("scontrol", "echo n1")
        return self.slurm.run(["bash", f"{run}/job.sh"], self.folder, **variables)

    @property
    def registered(self) -> list[dict[str, object]]:
        file = self.folder.parent / "vigil" / "jobs.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def login(tmp_path: Path) -> Login:
    return Login(tmp_path)


def test_submit_dry_run_prints_the_script_and_writes_nothing(login: Login) -> None:
    before = sorted(login.folder.parent.rglob("*"))
    shown = login.submit("--dry-run", *DDP)
    assert shown.returncode == 0, shown.stderr
    assert sorted(login.folder.parent.rglob("*")) == before
    assert login.slurm.calls == []
    assert login.submit(*DDP).returncode == 0
    assert (login.folder / "runs/demo-text/job.sh").read_text(encoding="utf-8") == shown.stdout


def test_submit_dry_run_needs_neither_slurm_nor_torch(login: Login) -> None:
    code = (
        "import atexit, json, sys\n"
        f"atexit.register(lambda: print('\\n' + json.dumps([m for m in {HEAVY!r} if m in sys.modules]), file=sys.stderr))\n"
        "from vigil.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "submit", RECIPE, "--dry-run", *DDP],
        cwd=login.folder,
        env={**os.environ, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == []


def test_submit_writes_the_checked_recipe_and_calls_sbatch(login: Login) -> None:
    done = login.submit("optimizer.lr=1e-5", *DDP, "--run", "my runs/a")
    assert done.returncode == 0, done.stderr
    run = login.folder / "my runs" / "a"
    expected = resolve_recipe(Path(RECIPE), ["optimizer.lr=1e-5", "strategy.kind=ddp", "strategy.nodes=2", "strategy.devices=4"])
    assert read_recipe(run / "resolved.yaml") == expected.recipe
    assert login.slurm.calls[-1][0] == "sbatch"
    assert login.slurm.arguments("sbatch") == ["--parsable", str(run / "job.sh")]
    assert done.stdout.splitlines() == [
        "job 41: my runs/a (2 nodes, 8 ranks)",
        "follow it:  vigil logs 'my runs/a' -f",
        "all runs:   vigil jobs",
    ]
    assert [(job["job"], job["run"], job["nodes"]) for job in login.registered] == [("41", str(run), 2)]


def test_submit_options_become_directives(login: Login) -> None:
    asked = ("--time", "1-00:00:00", "--partition", "gpu", "--account", "a b", "--qos", "high", "--after", "12,13_4")
    assert directives(login.submit("--dry-run", *DDP, *asked, "--signal-before", "90").stdout) == {
        "job-name": "vigil-demo-text",
        "comment": f"vigil:{login.folder}/runs/demo-text",
        "chdir": str(login.folder),
        "output": f"{login.folder}/runs/demo-text/slurm/%j.log",
        "open-mode": "append",
        "nodes": "2",
        "ntasks-per-node": "4",
        "gpus-per-node": "4",
        "time": "1-00:00:00",
        "partition": "gpu",
        "account": "a b",
        "qos": "high",
        "dependency": "afterok:12:13_4",
        "kill-on-invalid-dep": "yes",
        "signal": "USR1@90",
        "requeue": "",
    }


def test_submit_max_requeues_bounds_the_restarts(login: Login) -> None:
    assert login.submit("--max-requeues", "7").returncode == 0
    login.slurm.script("srun", "exit 85")
    assert login.run_job("runs/demo-text", SLURM_RESTART_COUNT="6").returncode == 85
    assert login.run_job("runs/demo-text", SLURM_RESTART_COUNT="7").returncode == 1


def test_submit_of_a_cpu_recipe_requests_no_gpus(login: Login) -> None:
    assert "gpus-per-node" not in directives(login.submit("--dry-run", *DDP, "training.accelerator=cpu").stdout)


def test_submit_refuses_several_ranks_of_a_single_process(login: Login) -> None:
    done = login.submit("--nodes", "2")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {RECIPE}: strategy.kind is single, which is one process; add strategy.kind=ddp or")
    assert login.submit("--nodes", "1", "--gpus-per-node", "1").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sead=1"], "command line: sead: is not a key of a recipe (did you mean seed?)"),
        (["--time", "soon"], "command line: time: must be a Slurm time such as"),
        (["--after", "yesterday"], "--after yesterday: must be the id of a job"),
        (["--array", "a-b"], "--array a-b: must have the form"),
        (["--array", "0-4", "seed=3"], "seed=3: --array sets the seed of each run"),
        (["--profile", "nowhere"], "--profile nowhere: no nowhere.yaml in"),
        (["--run", "a\\b"], "use another"),
    ],
)
def test_submit_reports_user_errors_before_any_effect(login: Login, arguments: list[str], message: str) -> None:
    done = login.submit(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (login.slurm.calls, list(login.folder.iterdir())) == ([], [])


def test_submit_refuses_a_run_with_a_queued_job(login: Login) -> None:
    line = f"echo '40|PENDING|Priority|0:00|2|N/A|vigil:{login.folder}/runs/demo-text'"
    login.slurm.script("squeue", "echo '39|RUNNING|None|1:00|1|N/A|other | comment'\n" + line)
    done = login.submit()
    assert done.returncode == 2
    assert done.stderr == f"error: {login.folder}/runs/demo-text: job 40 is PENDING; vigil cancel 40 ends it\n"
    assert login.slurm.calls_of("sbatch") == []
    assert login.submit("--run", "other").returncode == 0


def test_submit_refuses_a_finished_run(login: Login) -> None:
    assert login.submit().returncode == 0
    (login.folder / "runs/demo-text/thresholds.json").write_text("{}")
    done = login.submit()
    assert (done.returncode, done.stderr) == (2, "error: runs/demo-text: has finished; there is nothing to submit\n")


def test_submit_refuses_a_run_of_another_recipe(login: Login) -> None:
    assert login.submit().returncode == 0
    (login.folder / "runs/demo-text/checkpoints/step-00000002").mkdir(parents=True)
    assert login.submit().returncode == 0
    done = login.submit("optimizer.lr=0.5")
    assert done.returncode == 2
    assert "optimizer.lr: the run has" in done.stderr
    assert len(login.slurm.calls_of("sbatch")) == 2


def test_submit_removes_the_stop_file_of_a_cancelled_job(login: Login) -> None:
    assert login.submit().returncode == 0
    stop = login.folder / "runs/demo-text/slurm/stop"
    stop.touch()
    assert login.submit().returncode == 0
    assert not stop.exists()


def test_submit_array_makes_a_run_for_each_seed(login: Login) -> None:
    done = login.submit("--array", "0-2%1", "--run", "runs/many")
    assert done.returncode == 0, done.stderr
    runs = [login.folder / "runs" / f"many-{seed}" for seed in (0, 1, 2)]
    assert sorted((login.folder / "runs").iterdir()) == runs
    expected = resolve_recipe(Path(RECIPE), []).recipe
    assert [read_recipe(run / "resolved.yaml") for run in runs] == [
        expected.model_copy(update={"seed": seed}) for seed in (0, 1, 2)
    ]
    script = (runs[0] / "job.sh").read_text(encoding="utf-8")
    assert directives(script)["array"] == "0-2%1"
    assert directives(script)["output"] == f"{login.folder}/runs/many-%a/slurm/%A_%a.log"
    assert [(job["job"], job["run"]) for job in login.registered] == [(f"41_{seed}", str(run)) for seed, run in enumerate(runs)]
    assert login.submit("--array", "0-2%1", "--run", "runs/many", "--dry-run").stdout == script
    assert done.stdout.splitlines()[0] == "job 41: 3 runs, runs/many-0 to runs/many-2 (1 node, 1 rank each)"


def test_submit_array_refuses_a_run_with_a_queued_task(login: Login) -> None:
    login.slurm.script("squeue", f"echo '40_1|RUNNING|None|0:09|1|1|vigil:{login.folder}/runs/demo-text-%a'")
    done = login.submit("--array", "0-2")
    assert done.stderr == f"error: {login.folder}/runs/demo-text-1: job 40_1 is RUNNING; vigil cancel 40_1 ends it\n"


@pytest.mark.parametrize(
    ("text", "expected"), [("3", [3]), ("0-4", [0, 1, 2, 3, 4]), ("0-10:5%2", [0, 5, 10]), ("7,1-2,2", [1, 2, 7])]
)
def test_parse_array(text: str, expected: list[int]) -> None:
    assert parse_array(text) == expected


@pytest.mark.parametrize(
    "text", ["", "-1", "1-", "4-2", "1,,2", "0-4%0", "0-4%", "%2", "0-4:0", f"0-{MAX_ARRAY_TASKS}", "0-999999999", "1;2"]
)
def test_parse_array_refuses_other_text(text: str) -> None:
    with pytest.raises(UserError, match="--array"):
        parse_array(text)


def test_submit_prints_the_error_of_sbatch(login: Login) -> None:
    error = "echo 'sbatch: error: invalid partition specified: x' >&2; echo 'sbatch: error: more' >&2; exit 1"
    login.slurm.script("sbatch", error)
    done = login.submit()
    assert (done.returncode, done.stderr) == (1, "error: sbatch: invalid partition specified: x\n")
    assert not (login.folder.parent / "vigil").exists()


def test_submit_without_slurm(login: Login) -> None:
    done = login.submit(PATH=str(bash_alone(login)))
    assert done.returncode == 1
    assert done.stderr == "error: squeue: no such command; run this on a machine of the cluster, with Slurm on its PATH\n"
    assert not (login.folder / "runs").exists()


def bash_alone(login: Login) -> Path:
    folder = login.folder.parent / "bin"
    folder.mkdir()
    (folder / "bash").symlink_to("/bin/bash")
    return folder


def test_submitted_job_runs_the_submitting_command(login: Login) -> None:
    assert login.submit().returncode == 0
    login.run_job("runs/demo-text")
    own, run = Path(sys.executable).with_name("vigil"), login.folder / "runs" / "demo-text"
    command = [str(own) if own.is_file() else "vigil", "train", "--run", str(run), str(run / "resolved.yaml")]
    assert login.slurm.arguments("srun")[-5:] == command
