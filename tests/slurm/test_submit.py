"""`vigil submit` checks a recipe where it is typed, leaves what the job needs, and hands it to Slurm once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vigil_data.errors import UserError
from vigil_slurm.tasks import MOST, indices
from vigil_training.recipe.resolve import read_recipe, resolve_recipe

FAKE = Path(__file__).with_name("fakes") / "command.sh"
REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = str(REPOSITORY / "recipes" / "demo-text.yaml")
DDP = ("strategy.kind=ddp", "--nodes", "2", "--gpus-per-node", "4")
HEAVY = ("torch", "lightning", "numpy", "pyarrow", "lance", "transformers", "wandb", "deepspeed")


class Login:
    """A login node: a folder to work in, and fakes of Slurm's commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fakes = folder / "work", folder / "fakes"
        self.folder.mkdir()
        self.fakes.mkdir()
        for command in ("sbatch", "squeue", "scontrol"):
            (self.fakes / command).symlink_to(FAKE)
        (self.fakes / "sbatch.do").write_text("echo '41;cluster'\n")

    def vigil(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "VIGIL_SITE"}
        paths = {
            "PATH": f"{self.fakes}:{os.environ['PATH']}",
            "FAKES": str(self.fakes),
            "XDG_STATE_HOME": str(self.folder.parent),
        }
        return subprocess.run(
            [sys.executable, "-c", "from vigil.cli import main; main()", *arguments],
            cwd=self.folder,
            env={**environment, **paths, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def submit(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.vigil("submit", RECIPE, *arguments, **variables)

    @property
    def calls(self) -> list[str]:
        return (self.fakes / "calls").read_text(encoding="utf-8").splitlines() if (self.fakes / "calls").exists() else []

    @property
    def registered(self) -> list[dict[str, object]]:
        file = self.folder.parent / "vigil" / "jobs.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def login(tmp_path: Path) -> Login:
    return Login(tmp_path)


def test_a_dry_run_prints_the_script_and_does_nothing(login: Login) -> None:
    before = sorted(login.folder.parent.rglob("*"))
    shown = login.submit("--dry-run", *DDP)
    assert shown.returncode == 0, shown.stderr
    assert sorted(login.folder.parent.rglob("*")) == before
    assert login.calls == []
    assert login.submit(*DDP).returncode == 0
    assert (login.folder / "runs/demo-text/job.sh").read_text(encoding="utf-8") == shown.stdout


def test_a_dry_run_needs_neither_slurm_nor_torch(login: Login) -> None:
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


def test_what_is_submitted_is_what_was_checked(login: Login) -> None:
    done = login.submit("optimizer.lr=1e-5", *DDP, "--run", "my runs/a")
    assert done.returncode == 0, done.stderr
    run = login.folder / "my runs" / "a"
    expected = resolve_recipe(Path(RECIPE), ["optimizer.lr=1e-5", "strategy.kind=ddp", "strategy.nodes=2", "strategy.devices=4"])
    assert read_recipe(run / "resolved.yaml") == expected.recipe
    assert login.calls[-1].split("\t")[:2] == ["sbatch", "--parsable"]
    assert (login.fakes / "sbatch.arguments").read_text(encoding="utf-8").split("\0")[1] == str(run / "job.sh")
    assert done.stdout.splitlines() == [
        "job 41: my runs/a (2 nodes, 8 ranks)",
        "follow it:  vigil logs 'my runs/a' -f",
        "all runs:   vigil jobs",
    ]
    assert [(job["job"], job["run"], job["nodes"]) for job in login.registered] == [("41", str(run), 2)]


def test_what_is_asked_for_stands_in_the_script(login: Login) -> None:
    asked = ("--time", "1-00:00:00", "--partition", "gpu", "--account", "a b", "--qos", "high", "--after", "12,13_4")
    script = login.submit("--dry-run", *DDP, *asked, "--max-requeues", "7", "--signal-before", "90").stdout
    for line in (
        "#SBATCH --job-name=vigil-demo-text",
        f"#SBATCH --comment=vigil:{login.folder}/runs/demo-text",
        f"#SBATCH --chdir={login.folder}",
        f"#SBATCH --output={login.folder}/runs/demo-text/slurm/%j.log",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --time=1-00:00:00",
        "#SBATCH --partition=gpu",
        '#SBATCH --account="a b"',
        "#SBATCH --qos=high",
        "#SBATCH --dependency=afterok:12:13_4",
        "#SBATCH --signal=USR1@90",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "max_requeues=7",
    ):
        assert line in script.splitlines()


def test_a_recipe_for_the_cpu_asks_for_no_gpus(login: Login) -> None:
    assert "gpus" not in login.submit("--dry-run", *DDP, "training.accelerator=cpu").stdout


def test_one_process_cannot_be_spread(login: Login) -> None:
    done = login.submit("--nodes", "2")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {RECIPE}: strategy.kind is single, which is one process; add strategy.kind=ddp or")
    assert login.submit("--nodes", "1", "--gpus-per-node", "1").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sead=1"], "command line: sead: is not a key of a recipe (did you mean seed?)"),
        (["--time", "soon"], "command line: time: must be a time as Slurm writes it"),
        (["--after", "yesterday"], "--after yesterday: must be the id of a job"),
        (["--array", "a-b"], "--array a-b: must be of the form"),
        (["--array", "0-4", "seed=3"], "seed=3: --array gives each run its seed"),
        (["--profile", "nowhere"], "--profile nowhere: no nowhere.yaml in"),
        (["--run", "a\\b"], "use another"),
    ],
)
def test_a_mistake_is_told_before_anything_is_done(login: Login, arguments: list[str], said: str) -> None:
    done = login.submit(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (login.calls, list(login.folder.iterdir())) == ([], [])


def test_a_run_that_a_job_works_on_is_refused(login: Login) -> None:
    line = f"echo '40|PENDING|Priority|0:00|2|N/A|vigil:{login.folder}/runs/demo-text'\n"
    (login.fakes / "squeue.do").write_text("echo '39|RUNNING|None|1:00|1|N/A|other | comment'\n" + line)
    done = login.submit()
    assert done.returncode == 2
    assert done.stderr == f"error: {login.folder}/runs/demo-text: job 40 is PENDING; vigil cancel 40 ends it\n"
    assert not any(call.startswith("sbatch") for call in login.calls)
    assert login.submit("--run", "other").returncode == 0


def test_a_finished_run_is_refused(login: Login) -> None:
    assert login.submit().returncode == 0
    (login.folder / "runs/demo-text/thresholds.json").write_text("{}")
    done = login.submit()
    assert (done.returncode, done.stderr) == (2, "error: runs/demo-text: has finished; there is nothing to submit\n")


def test_a_run_of_another_recipe_is_refused(login: Login) -> None:
    assert login.submit().returncode == 0
    (login.folder / "runs/demo-text/checkpoints/step-00000002").mkdir(parents=True)
    assert login.submit().returncode == 0
    done = login.submit("optimizer.lr=0.5")
    assert done.returncode == 2
    assert "optimizer.lr: the run has" in done.stderr
    assert sum(call.startswith("sbatch") for call in login.calls) == 2


def test_a_new_submission_forgets_that_the_last_was_cancelled(login: Login) -> None:
    assert login.submit().returncode == 0
    stop = login.folder / "runs/demo-text/slurm/stop"
    stop.touch()
    assert login.submit().returncode == 0
    assert not stop.exists()


def test_an_array_is_a_run_for_each_seed(login: Login) -> None:
    done = login.submit("--array", "0-2%1", "--run", "runs/many")
    assert done.returncode == 0, done.stderr
    runs = [login.folder / "runs" / f"many-{seed}" for seed in (0, 1, 2)]
    assert sorted((login.folder / "runs").iterdir()) == runs
    expected = resolve_recipe(Path(RECIPE), []).recipe
    assert [read_recipe(run / "resolved.yaml") for run in runs] == [expected.model_copy(update={"seed": seed}) for seed in (0, 1, 2)]
    script = (runs[0] / "job.sh").read_text(encoding="utf-8")
    assert "#SBATCH --array=0-2%1\n" in script
    assert f"#SBATCH --output={login.folder}/runs/many-%a/slurm/%A_%a.log\n" in script
    assert [(job["job"], job["run"]) for job in login.registered] == [(f"41_{seed}", str(run)) for seed, run in enumerate(runs)]
    assert login.submit("--array", "0-2%1", "--run", "runs/many", "--dry-run").stdout == script
    assert done.stdout.splitlines()[0] == "job 41: 3 runs, runs/many-0 to runs/many-2 (1 node, 1 rank each)"


def test_a_run_of_an_array_that_is_busy_is_refused_by_its_task(login: Login) -> None:
    (login.fakes / "squeue.do").write_text(f"echo '40_1|RUNNING|None|0:09|1|1|vigil:{login.folder}/runs/demo-text-%a'\n")
    done = login.submit("--array", "0-2")
    assert done.stderr == f"error: {login.folder}/runs/demo-text-1: job 40_1 is RUNNING; vigil cancel 40_1 ends it\n"


@pytest.mark.parametrize(
    ("text", "expected"), [("3", [3]), ("0-4", [0, 1, 2, 3, 4]), ("0-10:5%2", [0, 5, 10]), ("7,1-2,2", [1, 2, 7])]
)
def test_tasks_of_an_array(text: str, expected: list[int]) -> None:
    assert indices(text) == expected


@pytest.mark.parametrize(
    "text", ["", "-1", "1-", "4-2", "1,,2", "0-4%0", "0-4%", "%2", "0-4:0", f"0-{MOST}", "0-999999999", "1;2"]
)
def test_what_is_not_an_array(text: str) -> None:
    with pytest.raises(UserError, match="--array"):
        indices(text)


def test_slurm_that_refuses_is_quoted(login: Login) -> None:
    (login.fakes / "sbatch.do").write_text(
        "echo 'sbatch: error: invalid partition specified: x' >&2; echo 'sbatch: error: more' >&2; exit 1\n"
    )
    done = login.submit()
    assert (done.returncode, done.stderr) == (1, "error: sbatch: invalid partition specified: x\n")
    assert not (login.folder.parent / "vigil").exists()


def test_a_machine_without_slurm(login: Login) -> None:
    done = login.submit(PATH=str(bash_alone(login)))
    assert done.returncode == 1
    assert done.stderr == "error: squeue: no such command; is this a machine of the cluster, and Slurm on its PATH?\n"
    assert not (login.folder / "runs").exists()


def bash_alone(login: Login) -> Path:
    folder = login.folder.parent / "bin"
    folder.mkdir()
    (folder / "bash").symlink_to("/bin/bash")
    return folder


def test_the_job_runs_the_command_that_submitted(login: Login) -> None:
    script = login.submit("--dry-run").stdout
    own = Path(sys.executable).with_name("vigil")
    assert f"\n  {own if own.is_file() else 'vigil'} train --run" in script
