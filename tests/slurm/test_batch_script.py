"""The batch script does what it says for every way in which ranks can end, and no value in it is ever read as shell."""

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_slurm.batch_script import Job, directive, render
from vigil_slurm.site import Apptainer, Network, NoContainer, Pyxis, Site

FAKE = Path(__file__).with_name("fakes") / "command.sh"
VALUES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30)
AWKWARD = 'it\'s a "run" of $HOME `id` $(id) 50% #5 & more; é*?'


class Machine:
    """A folder of fake commands, and a run folder as a submission leaves it."""

    def __init__(self, folder: Path, name: str = "run") -> None:
        self.fakes, self.run = folder / "fakes", folder / name
        self.fakes.mkdir()
        (self.run / "slurm").mkdir(parents=True)
        for command in ("srun", "scontrol", "squeue"):
            (self.fakes / command).symlink_to(FAKE)
        self.does("scontrol", 'if [ "$1" = show ]; then printf "n1\\nn2\\n"; fi')

    def does(self, command: str, text: str) -> None:
        (self.fakes / f"{command}.do").write_text(text + "\n", encoding="utf-8")

    def environment(self, **variables: str) -> dict[str, str]:
        path = f"{self.fakes}:{os.environ['PATH']}"
        facts = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-2]"}
        return {**os.environ, **facts, **variables, "PATH": path, "FAKES": str(self.fakes)}

    def start(self, site: Site | None = None, job: Job | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        script = render(job or Job("tiny", self.run, self.run.parent, 2, 2), site or Site())
        (self.run / "job.sh").write_text(script, encoding="utf-8")
        return subprocess.run(
            ["bash", str(self.run / "job.sh")],
            cwd=self.run.parent,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def arguments(self, command: str) -> list[str]:
        return (self.fakes / f"{command}.arguments").read_text(encoding="utf-8").split("\0")[:-1]

    def variables(self, command: str) -> dict[str, str]:
        lines = (self.fakes / f"{command}.environment").read_text(encoding="utf-8").split("\0")[:-1]
        return dict(line.split("=", 1) for line in lines)

    @property
    def calls(self) -> list[str]:
        return (self.fakes / "calls").read_text(encoding="utf-8").splitlines() if (self.fakes / "calls").exists() else []

    @property
    def requeued(self) -> bool:
        return "scontrol\trequeue\t77" in self.calls

    @property
    def attempts(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.run / "slurm" / "attempts.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def need(command: str) -> str:
    """The path of a command without which nothing is proved."""
    found = shutil.which(command)
    if found is None:
        (pytest.fail if os.environ.get("VIGIL_REQUIRE_ALL") == "1" else pytest.skip)(f"{command} is not installed")
    return str(found)


@pytest.mark.parametrize(
    ("status", "exit_status", "requeued", "outcome"),
    [
        (0, 0, False, "finished"),
        (85, 85, True, "preempted"),
        (137, 85, True, "killed"),
        (143, 85, True, "killed"),
        (1, 85, True, "unexplained"),
        (255, 85, True, "unexplained"),
        (2, 2, False, "failed"),
        (126, 126, False, "failed"),
        (127, 127, False, "failed"),
    ],
)
def test_each_status_has_its_end(machine: Machine, status: int, exit_status: int, requeued: bool, outcome: str) -> None:
    machine.does("srun", f"exit {status}")
    done = machine.start()
    assert (done.returncode, machine.requeued) == (exit_status, requeued), done.stdout + done.stderr
    start, end = machine.attempts
    assert start | {"time": ""} == {"event": "start", "job": "77", "restart": 0, "nodes": "n[1-2]", "time": ""}
    assert end | {"time": ""} == {"event": "end", "job": "77", "restart": 0, "status": status, "outcome": outcome, "time": ""}


def test_a_failure_that_a_rank_explains_is_shown_and_not_requeued_whatever_srun_says(machine: Machine) -> None:
    said = json.dumps({"rank": 1, "host": "n2", "status": 2, "lines": ["no dataset at x"]}, indent=2)
    machine.does("srun", f"cat >'{machine.run}/failure.json' <<'END'\n{said}\nEND\nexit 85")
    done = machine.start()
    assert (done.returncode, machine.requeued) == (2, False)
    assert "no dataset at x" in done.stdout
    assert machine.attempts[-1]["outcome"] == "failed"


def test_the_failure_of_an_earlier_start_counts_no_more(machine: Machine) -> None:
    (machine.run / "failure.json").write_text('{"status": 1}')
    machine.does("srun", "exit 85")
    assert machine.start().returncode == 85
    assert machine.requeued


def test_a_rank_that_is_killed_when_all_is_done_changes_nothing(machine: Machine) -> None:
    machine.does("srun", f"touch '{machine.run}/thresholds.json'; exit 138")
    assert (machine.start().returncode, machine.requeued) == (0, False)
    assert machine.attempts[-1]["outcome"] == "finished"


def test_restarts_are_bounded(machine: Machine) -> None:
    machine.does("srun", "exit 85")
    site = Site(max_requeues=3)
    assert machine.start(site, SLURM_RESTART_COUNT="2").returncode == 85
    assert machine.requeued
    (machine.fakes / "calls").unlink()
    last = machine.start(site, SLURM_RESTART_COUNT="3")
    assert (last.returncode, machine.requeued) == (1, False)
    assert "gave up: preempted (status 85) after 3 requeues, and max_requeues is 3" in last.stdout
    beyond = machine.start(site, SLURM_RESTART_COUNT="4")  # Slurm itself requeues too: a lost node is not asked.
    assert beyond.returncode == 1
    assert sum(call.startswith("srun") for call in machine.calls) == 1
    assert [a["outcome"] for a in machine.attempts if a["event"] == "end"] == ["preempted", "gave-up", "gave-up"]


def test_an_end_that_nothing_explains_is_tried_once_more_only(machine: Machine) -> None:
    machine.does("srun", "exit 1")
    assert machine.start().returncode == 85
    (machine.fakes / "calls").unlink()
    again = machine.start(SLURM_RESTART_COUNT="1")
    assert (again.returncode, machine.requeued) == (1, False)
    assert "second time in a row" in again.stdout
    other = machine.start(SLURM_JOB_ID="78")
    assert other.returncode == 85


def test_what_was_cancelled_is_not_requeued(machine: Machine) -> None:
    machine.does("srun", f"touch '{machine.run}/slurm/stop'; exit 85")
    assert (machine.start().returncode, machine.requeued) == (85, False)
    assert machine.attempts[-1]["outcome"] == "stopped"
    machine.start(SLURM_RESTART_COUNT="1")
    assert sum(call.startswith("srun") for call in machine.calls) == 1


def test_an_older_start_touches_nothing_of_a_newer_one(machine: Machine) -> None:
    newer = '{"event": "start", "job": "123", "restart": 1, "nodes": "n3", "time": "2026-01-01T00:00:00+00:00"}'
    machine.does("srun", f"echo '{newer}' >>'{machine.run}/slurm/attempts.jsonl'; exit 137")
    done = machine.start()
    assert done.returncode == 85
    assert "another start of this run has taken over" in done.stdout
    assert not machine.requeued
    assert [attempt["event"] for attempt in machine.attempts] == ["start", "start"]


def test_a_requeue_that_slurm_refuses_is_said(machine: Machine) -> None:
    machine.does("srun", "exit 85")
    machine.does("scontrol", 'if [ "$1" = show ]; then echo n1; else echo "Requested operation is disabled" >&2; exit 1; fi')
    done = machine.start()
    assert done.returncode == 85
    assert "did not requeue" in done.stdout


def test_the_script_outlives_the_signal_with_which_slurm_ends_a_job(machine: Machine) -> None:
    machine.does("srun", "kill -TERM $PPID; sleep 1; exit 85")
    done = machine.start()
    assert (done.returncode, machine.requeued) == (85, False), done.stdout + done.stderr
    assert machine.attempts[-1]["outcome"] == "preempted"


def test_a_job_that_met_its_time_limit_goes_on(machine: Machine) -> None:
    machine.does("srun", "kill -TERM $PPID; sleep 1; exit 85")
    machine.does("squeue", "echo TimeLimit")
    assert (machine.start().returncode, machine.requeued) == (85, True)
    assert "squeue\t--noheader\t--jobs=77\t--format=%r" in machine.calls


def test_ranks_are_told_where_they_meet(machine: Machine) -> None:
    site = Site(network=Network(interface="ib0", nccl={"NCCL_IB_HCA": "mlx5 'x'"}), setup=("export SITE_SAYS=hello",))
    machine.start(site)
    said = machine.variables("srun")
    assert said["MASTER_ADDR"] == "n1"
    assert 10000 <= int(said["MASTER_PORT"]) < 30000
    assert (said["GLOO_SOCKET_IFNAME"], said["NCCL_SOCKET_IFNAME"], said["NCCL_IB_HCA"]) == ("ib0", "ib0", "mlx5 'x'")
    assert said["SITE_SAYS"] == "hello"
    machine.start(Site(address="echo '10.0.0.1 x' | cut -d ' ' -f 1"), SLURM_RESTART_COUNT="1")
    again = machine.variables("srun")
    assert again["MASTER_ADDR"] == "10.0.0.1"
    assert again["MASTER_PORT"] != said["MASTER_PORT"]


def test_an_address_that_is_not_found_ends_the_job(machine: Machine) -> None:
    done = machine.start(Site(address="true"))
    assert done.returncode == 2
    assert not any(call.startswith("srun") for call in machine.calls)


def test_modules_that_do_not_load_end_the_job(machine: Machine) -> None:
    machine.does("srun", "exit 0")
    assert machine.start(Site(modules=("cuda/12.8", "n'ccl")), BASH_ENV=str(module(machine, "return 1"))).returncode == 2
    assert machine.start(Site(modules=("cuda/12.8", "n'ccl")), BASH_ENV=str(module(machine, "return 0"))).returncode == 0
    assert (machine.fakes / "modules").read_text() == "load|cuda/12.8|n'ccl|\n" * 2


def module(machine: Machine, end: str) -> Path:
    file = machine.fakes / "module.sh"
    file.write_text(f"module() {{ printf '%s|' \"$@\" >>'{machine.fakes}/modules'; echo >>'{machine.fakes}/modules'; {end}; }}\n")
    return file


def test_srun_starts_every_rank(machine: Machine) -> None:
    machine.start(Site(cpus_per_task=4))
    run = str(machine.run)
    assert machine.arguments("srun") == [
        *("--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--cpus-per-task=4", "--kill-on-bad-exit=0", "--wait=0", "--label"),
        *("vigil", "train", "--run", run, f"{run}/resolved.yaml"),
    ]


def test_apptainer_mounts_the_run_and_the_folder_of_submission(machine: Machine) -> None:
    site = Site(container=Apptainer(image="/images/a b.sif", mounts=("/x:/y:ro",)))
    machine.start(site, Job("t", machine.run, machine.run.parent, gpus=True))
    here, run = str(machine.run.parent), str(machine.run)
    assert machine.arguments("srun")[5:] == [
        *("apptainer", "exec", "--nv", f"--bind={here}:{here},{run}:{run},/x:/y:ro", f"--pwd={here}", "/images/a b.sif"),
        *("vigil", "train", "--run", run, f"{run}/resolved.yaml"),
    ]


def test_pyxis_is_told_by_options_of_srun(machine: Machine) -> None:
    machine.start(Site(container=Pyxis(image="registry#a/b:1", mounts=("/x:/y",))))
    here, run = str(machine.run.parent), str(machine.run)
    assert machine.arguments("srun")[6:] == [
        *("--container-image=registry#a/b:1", f"--container-workdir={here}"),
        f"--container-mounts={here}:{here},{run}:{run},/x:/y",
        *("vigil", "train", "--run", run, f"{run}/resolved.yaml"),
    ]


def test_a_task_of_an_array_has_a_run_of_its_own(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "50% a-3")
    job = Job("tiny", tmp_path / "50% a", tmp_path, array="0-4%2")
    text = render(job, Site())
    assert f'#SBATCH --output="{tmp_path}/50%% a-%a/slurm/%A_%a.log"' in text
    machine.start(job=job, SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="3")
    assert machine.arguments("srun")[-2:] == [str(machine.run), f"{machine.run}/resolved.yaml"]
    assert machine.attempts[0]["job"] == "70_3"


@pytest.mark.parametrize("site", [Site(), Site(container=Apptainer(image=AWKWARD)), Site(container=Pyxis(image=AWKWARD))])
def test_awkward_paths_reach_the_ranks_as_they_are(tmp_path: Path, site: Site) -> None:
    machine = Machine(tmp_path, AWKWARD)
    machine.start(site, Job("tiny", machine.run, tmp_path, command=AWKWARD))
    assert machine.arguments("srun")[-5:] == [AWKWARD, "train", "--run", str(machine.run), f"{machine.run}/resolved.yaml"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=VALUES)
def test_no_value_is_read_as_shell(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    machine = Machine(tmp_path_factory.mktemp("quoting"))
    site = Site(network=Network(interface=text, nccl={"NCCL_X": text}), address="echo here", partition=text)
    machine.start(site, Job("tiny", machine.run, machine.run.parent, command=text))
    assert machine.arguments("srun")[-5] == text
    said = machine.variables("srun")
    assert (said["GLOO_SOCKET_IFNAME"], said["NCCL_X"]) == (text, text)


def every_combination() -> list[str]:
    containers = (NoContainer(), Apptainer(image=AWKWARD, mounts=("/a b:/c",)), Pyxis(image=AWKWARD, mounts=("/a b:/c",)))
    scripts = []
    choices = itertools.product(containers, (None, "0-4%2"), *[(False, True)] * 3)
    for container, array, gpus, network, many in choices:
        site = Site(
            container=container,
            network=Network(interface="ib 0", nccl={"NCCL_DEBUG": AWKWARD}) if network else Network(),
            address="hostname -I | cut -d ' ' -f 1" if network else None,
            modules=("a b", "c") if many else (),
            setup=("export X=1", "if true; then\n  export Y=2\nfi") if many else (),
            options=("--mem=0",) if many else (),
            signal_before=60 if many else 0,
            cpus_per_task=3 if many else None,
            time="1:00:00" if many else None,
        )
        directory, run = Path("/submitted here"), Path("/runs") / AWKWARD
        after = ("12", "13_4") if many else ()
        scripts.append(render(Job("tiny", run, directory, 2 if many else 1, 2 if many else 1, gpus, AWKWARD, array, after), site))
    return scripts


def test_shellcheck_has_nothing_to_say_to_any_combination(tmp_path: Path) -> None:
    command = need("shellcheck")
    files = []
    for number, script in enumerate(sorted(set(every_combination()))):
        file = tmp_path / f"{number}.sh"
        file.write_text(script, encoding="utf-8")
        files.append(str(file))
    assert len(files) == 48
    done = subprocess.run([command, "--norc", *files], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[:3000]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(VALUES, min_size=20, max_size=20))
def test_sbatch_reads_each_value_as_it_is(tmp_path_factory: pytest.TempPathFactory, values: list[str]) -> None:
    sbatch, folder = need("sbatch"), tmp_path_factory.mktemp("sbatch")
    (folder / "slurm.conf").write_text(
        "ClusterName=x\nSlurmctldHost=localhost(127.0.0.1)\nAuthType=auth/none\nNodeName=n1\nPartitionName=p Nodes=ALL\n"
    )
    lines = [f"#SBATCH --comment={directive(value)}" for value in [*values, AWKWARD, "back\\slash"]]
    # The last line is refused, so that sbatch tells what it read and asks no controller.
    (folder / "job.sh").write_text("\n".join(["#!/bin/bash", *lines, "#SBATCH --no-such-option", "true\n"]), encoding="utf-8")
    done = subprocess.run(
        [sbatch, "-vvv", str(folder / "job.sh")],
        env={**os.environ, "SLURM_CONF": str(folder / "slurm.conf")},
        capture_output=True,
        timeout=60,
        check=False,
    )
    found = [
        line.split(b'argument "--comment=', 1)[1][:-1] for line in done.stderr.split(b"\n") if b'argument "--comment=' in line
    ]
    assert found == [value.encode() for value in [*values, AWKWARD, "back\\slash"]]


def test_setup_that_bash_cannot_read_is_refused() -> None:
    with pytest.raises(UserError, match="setup is not right for bash"):
        render(Job("t", Path("/r"), Path("/d")), Site(setup=("if true; then",)))


@pytest.mark.parametrize("path", ["/a\nb", "/a\\b"])
def test_a_path_that_slurm_cannot_write_to_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="use another"):
        render(Job("t", Path(path), Path("/d")), Site())


def test_a_path_that_cannot_be_mounted_is_refused(make_container: Callable[[str], Site]) -> None:
    for kind in ("apptainer", "pyxis"):
        with pytest.raises(UserError, match="cannot be mounted"):
            render(Job("t", Path("/a:b"), Path("/d")), make_container(kind))


@pytest.fixture
def make_container() -> Callable[[str], Site]:
    return lambda kind: Site(container=Apptainer(image="i") if kind == "apptainer" else Pyxis(image="i"))
