"""Batch script: its outcome for every way in which ranks can end, its srun command, and the quoting of its values."""

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, directives
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_slurm.batch_script import BatchJob, quote_directive, render_batch_script, render_command_script
from vigil_slurm.site import Apptainer, Network, NoContainer, Pyxis, Site

VALUES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30)
AWKWARD = 'it\'s a "run" of $HOME `id` $(id) 50% #5 & more; é*?'


class Node:
    """The node of a batch script with fakes of Slurm's commands, and a run folder after its submission."""

    def __init__(self, folder: Path, name: str = "run") -> None:
        self.slurm, self.run = FakeSlurm(folder / "fakes", "srun", "scontrol", "squeue"), folder / name
        (self.run / "slurm").mkdir(parents=True)
        self.slurm.script("scontrol", 'if [ "$1" = show ]; then printf "n1\\nn2\\n"; fi')

    def start(self, site: Site | None = None, job: BatchJob | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        script = render_batch_script(job or BatchJob("tiny", self.run, self.run.parent, 2, 2), site or Site())
        (self.run / "job.sh").write_text(script, encoding="utf-8")
        variables = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-2]", **variables}
        return self.slurm.run(["bash", str(self.run / "job.sh")], self.run.parent, **variables)

    @property
    def requeued(self) -> bool:
        return ["requeue", "77"] in self.slurm.calls_of("scontrol")

    @property
    def attempts(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.run / "slurm" / "attempts.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def need(command: str) -> str:
    """Return the path of a command that the test needs."""
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
def test_script_ends_and_requeues_by_the_status_of_srun(
    node: Node, status: int, exit_status: int, requeued: bool, outcome: str
) -> None:
    node.slurm.script("srun", f"exit {status}")
    done = node.start()
    assert (done.returncode, node.requeued) == (exit_status, requeued), done.stdout + done.stderr
    start, end = node.attempts
    assert start | {"time": ""} == {"event": "start", "job": "77", "restart": 0, "nodes": "n[1-2]", "time": ""}
    assert end | {"time": ""} == {"event": "end", "job": "77", "restart": 0, "status": status, "outcome": outcome, "time": ""}


def test_script_prints_a_reported_failure_and_does_not_requeue(node: Node) -> None:
    failure = json.dumps({"rank": 1, "host": "n2", "status": 2, "lines": ["no dataset at x"]}, indent=2)
    node.slurm.script("srun", f"cat >'{node.run}/failure.json' <<'END'\n{failure}\nEND\nexit 85")
    done = node.start()
    assert (done.returncode, node.requeued) == (2, False)
    assert "no dataset at x" in done.stdout
    assert node.attempts[-1]["outcome"] == "failed"


def test_script_ignores_the_failure_of_an_earlier_start(node: Node) -> None:
    (node.run / "failure.json").write_text('{"status": 1}')
    node.slurm.script("srun", "exit 85")
    assert node.start().returncode == 85
    assert node.requeued


def test_script_finishes_if_a_rank_is_killed_after_the_end(node: Node) -> None:
    node.slurm.script("srun", f"touch '{node.run}/thresholds.json'; exit 138")
    assert (node.start().returncode, node.requeued) == (0, False)
    assert node.attempts[-1]["outcome"] == "finished"


def test_script_gives_up_after_max_requeues(node: Node) -> None:
    node.slurm.script("srun", "exit 85")
    site = Site(max_requeues=3)
    assert node.start(site, SLURM_RESTART_COUNT="2").returncode == 85
    assert node.requeued
    (node.slurm.folder / "calls").unlink()
    last = node.start(site, SLURM_RESTART_COUNT="3")
    assert (last.returncode, node.requeued) == (1, False)
    assert "gave up: preempted (status 85) after 3 requeues, and max_requeues is 3" in last.stdout
    beyond = node.start(site, SLURM_RESTART_COUNT="4")  # Slurm requeues too, if a node is lost.
    assert beyond.returncode == 1
    assert len(node.slurm.calls_of("srun")) == 1
    assert [a["outcome"] for a in node.attempts if a["event"] == "end"] == ["preempted", "gave-up", "gave-up"]


def test_script_requeues_an_unexplained_end_once(node: Node) -> None:
    node.slurm.script("srun", "exit 1")
    assert node.start().returncode == 85
    (node.slurm.folder / "calls").unlink()
    again = node.start(SLURM_RESTART_COUNT="1")
    assert (again.returncode, node.requeued) == (1, False)
    assert "second time in a row" in again.stdout
    other = node.start(SLURM_JOB_ID="78")
    assert other.returncode == 85


def test_script_does_not_requeue_a_cancelled_run(node: Node) -> None:
    node.slurm.script("srun", f"touch '{node.run}/slurm/stop'; exit 85")
    assert (node.start().returncode, node.requeued) == (85, False)
    assert node.attempts[-1]["outcome"] == "stopped"
    node.start(SLURM_RESTART_COUNT="1")
    assert len(node.slurm.calls_of("srun")) == 1


def test_script_of_an_older_start_leaves_a_newer_one_alone(node: Node) -> None:
    newer = '{"event": "start", "job": "123", "restart": 1, "nodes": "n3", "time": "2026-01-01T00:00:00+00:00"}'
    node.slurm.script("srun", f"echo '{newer}' >>'{node.run}/slurm/attempts.jsonl'; exit 137")
    done = node.start()
    assert done.returncode == 85
    assert "another start of this run has taken over" in done.stdout
    assert not node.requeued
    assert [attempt["event"] for attempt in node.attempts] == ["start", "start"]


def test_script_logs_a_requeue_that_slurm_refuses(node: Node) -> None:
    node.slurm.script("srun", "exit 85")
    node.slurm.script("scontrol", 'if [ "$1" = show ]; then echo n1; else echo "Requested operation is disabled" >&2; exit 1; fi')
    done = node.start()
    assert done.returncode == 85
    assert "did not requeue" in done.stdout


def test_script_records_the_end_after_sigterm(node: Node) -> None:
    node.slurm.script("srun", "kill -TERM $PPID; sleep 1; exit 85")
    done = node.start()
    assert (done.returncode, node.requeued) == (85, False), done.stdout + done.stderr
    assert node.attempts[-1]["outcome"] == "preempted"


def test_script_requeues_at_the_time_limit(node: Node) -> None:
    node.slurm.script("srun", "kill -TERM $PPID; sleep 1; exit 85")
    node.slurm.script("squeue", "echo TimeLimit")
    assert (node.start().returncode, node.requeued) == (85, True)
    assert ["--noheader", "--jobs=77", "--format=%r"] in node.slurm.calls_of("squeue")


def test_script_exports_address_port_and_network(node: Node) -> None:
    site = Site(network=Network(interface="ib0", nccl={"NCCL_IB_HCA": "mlx5 'x'"}), setup=("export SITE_VARIABLE=hello",))
    node.start(site)
    exported = node.slurm.variables("srun")
    assert exported["MASTER_ADDR"] == "n1"
    assert 10000 <= int(exported["MASTER_PORT"]) < 30000
    assert (exported["GLOO_SOCKET_IFNAME"], exported["NCCL_SOCKET_IFNAME"], exported["NCCL_IB_HCA"]) == ("ib0", "ib0", "mlx5 'x'")
    assert exported["SITE_VARIABLE"] == "hello"
    node.start(Site(address="echo '10.0.0.1 x' | cut -d ' ' -f 1"), SLURM_RESTART_COUNT="1")
    again = node.slurm.variables("srun")
    assert again["MASTER_ADDR"] == "10.0.0.1"
    assert again["MASTER_PORT"] != exported["MASTER_PORT"]


def test_script_ends_without_an_address(node: Node) -> None:
    done = node.start(Site(address="true"))
    assert done.returncode == 2
    assert node.slurm.calls_of("srun") == []


def test_script_ends_if_a_module_does_not_load(node: Node) -> None:
    node.slurm.script("srun", "exit 0")
    assert node.start(Site(modules=("cuda/12.8", "n'ccl")), BASH_ENV=str(module(node, "return 1"))).returncode == 2
    assert node.start(Site(modules=("cuda/12.8", "n'ccl")), BASH_ENV=str(module(node, "return 0"))).returncode == 0
    assert (node.slurm.folder / "modules").read_text() == "load|cuda/12.8|n'ccl|\n" * 2


def module(node: Node, end: str) -> Path:
    file = node.slurm.folder / "module.sh"
    file.write_text(
        f"module() {{ printf '%s|' \"$@\" >>'{node.slurm.folder}/modules'; echo >>'{node.slurm.folder}/modules'; {end}; }}\n"
    )
    return file


def test_script_starts_every_rank_with_srun(node: Node) -> None:
    node.start(Site(cpus_per_task=4))
    run = str(node.run)
    assert node.slurm.arguments("srun") == [
        *("--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--cpus-per-task=4", "--kill-on-bad-exit=0", "--wait=0", "--label"),
        *("vigil", "train", "--run", run, f"{run}/resolved.yaml"),
    ]


def test_script_with_apptainer_mounts_run_and_working_directory(node: Node) -> None:
    site = Site(container=Apptainer(image="/images/a b.sif", mounts=("/x:/y:ro",)))
    node.start(site, BatchJob("t", node.run, node.run.parent, gpus=True))
    here, run = str(node.run.parent), str(node.run)
    assert node.slurm.arguments("srun")[5:] == [
        *("apptainer", "exec", "--nv", f"--bind={here}:{here},{run}:{run},/x:/y:ro", f"--pwd={here}", "/images/a b.sif"),
        *("vigil", "train", "--run", run, f"{run}/resolved.yaml"),
    ]


def test_script_with_pyxis_passes_options_to_srun(node: Node) -> None:
    node.start(Site(container=Pyxis(image="registry#a/b:1", mounts=("/x:/y",))))
    here, run = str(node.run.parent), str(node.run)
    assert node.slurm.arguments("srun")[6:] == [
        *("--container-image=registry#a/b:1", f"--container-workdir={here}"),
        f"--container-mounts={here}:{here},{run}:{run},/x:/y",
        *("vigil", "train", "--run", run, f"{run}/resolved.yaml"),
    ]


@pytest.mark.parametrize(
    "container", [NoContainer(), Pyxis(kind="pyxis", image="image"), Apptainer(kind="apptainer", image="i.sif")]
)
def test_script_of_a_command_runs_it_once(node: Node, container: NoContainer | Pyxis | Apptainer) -> None:
    folder = node.run.parent / "fakes"
    for command in ("vigil", "apptainer"):
        (folder / command).symlink_to(folder / "squeue")
    site = Site(modules=("cuda",), setup=("module() { :; }", 'export GREETING="a b"'), container=container, time="30")
    job = BatchJob("loop-x", node.run, node.run.parent, after=("12", "13"))
    script = render_command_script(job, site, ["loop", "run", AWKWARD]).replace("module load", "true")
    done = node.slurm.run(["bash", "-c", script], node.run.parent)
    assert done.returncode == 0, done.stderr
    (calls,) = (of for of in (node.slurm.calls_of(name) for name in ("srun", "vigil", "apptainer")) if of)
    used = {"none": "vigil", "pyxis": "srun", "apptainer": "apptainer"}[container.kind]
    assert node.slurm.arguments(used)[-3:] == ["loop", "run", AWKWARD]
    assert node.slurm.variables(used)["GREETING"] == "a b"
    assert len(calls) == 1
    options = directives(script)
    assert (options["dependency"], options["time"], options["nodes"]) == ("afterok:12:13", "30", "1")


def test_script_of_an_array_uses_the_tasks_run(tmp_path: Path) -> None:
    node = Node(tmp_path, "50% a-3")
    job = BatchJob("tiny", tmp_path / "50% a", tmp_path, array="0-4%2")
    text = render_batch_script(job, Site())
    assert directives(text)["output"] == f"{tmp_path}/50%% a-%a/slurm/%A_%a.log"
    node.start(job=job, SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="3")
    assert node.slurm.arguments("srun")[-2:] == [str(node.run), f"{node.run}/resolved.yaml"]
    assert node.attempts[0]["job"] == "70_3"


def test_script_of_an_array_of_workers_runs_their_command_and_requeues_it(tmp_path: Path) -> None:
    node = Node(tmp_path, "sweep-2")
    shared = f"{tmp_path}/{AWKWARD.replace(':', '').replace(',', '')}"
    arguments = ("sweep", "worker", shared)
    site = Site(cpus_per_task=3, container=Apptainer(image="i.sif"))
    job = BatchJob(
        "x", tmp_path / "sweep", tmp_path, 1, 1, True, array="0-3", arguments=arguments, shared=shared, devices_per_rank=2
    )
    options = directives(render_batch_script(job, site))
    assert [options[name] for name in ("ntasks-per-node", "gpus-per-node", "cpus-per-task")] == ["1", "2", "6"]
    node.slurm.script("srun", "exit 85")
    done = node.start(site, job, SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="2")
    assert (done.returncode, node.requeued, node.attempts[-1]["outcome"]) == (85, True, "preempted")
    words = node.slurm.arguments("srun")
    assert words[-3:] == list(arguments)
    assert "--cpus-per-task=6" in words
    assert f"--bind={tmp_path}:{tmp_path},{shared}:{shared}" in words
    (node.run / "slurm" / "stop").touch()
    assert "`vigil sweep submit` resumes it" in node.start(site, job, SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="2").stdout


@pytest.mark.parametrize("site", [Site(), Site(container=Apptainer(image=AWKWARD)), Site(container=Pyxis(image=AWKWARD))])
def test_script_passes_awkward_paths_unchanged(tmp_path: Path, site: Site) -> None:
    node = Node(tmp_path, AWKWARD)
    node.start(site, BatchJob("tiny", node.run, tmp_path, command=AWKWARD))
    assert node.slurm.arguments("srun")[-5:] == [AWKWARD, "train", "--run", str(node.run), f"{node.run}/resolved.yaml"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=VALUES)
def test_script_expands_no_value(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    node = Node(tmp_path_factory.mktemp("quoting"))
    site = Site(network=Network(interface=text, nccl={"NCCL_X": text}), address="echo here", partition=text)
    node.start(site, BatchJob("tiny", node.run, node.run.parent, command=text))
    assert node.slurm.arguments("srun")[-5] == text
    exported = node.slurm.variables("srun")
    assert (exported["GLOO_SOCKET_IFNAME"], exported["NCCL_X"]) == (text, text)


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
        scripts.append(
            render_batch_script(
                BatchJob("tiny", run, directory, 2 if many else 1, 2 if many else 1, gpus, AWKWARD, array, after), site
            )
        )
    return scripts


def test_script_passes_shellcheck_for_every_combination(tmp_path: Path) -> None:
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
def test_quote_directive_is_read_back_by_sbatch(tmp_path_factory: pytest.TempPathFactory, values: list[str]) -> None:
    sbatch, folder = need("sbatch"), tmp_path_factory.mktemp("sbatch")
    (folder / "slurm.conf").write_text(
        "ClusterName=x\nSlurmctldHost=localhost(127.0.0.1)\nAuthType=auth/none\nNodeName=n1\nPartitionName=p Nodes=ALL\n"
    )
    lines = [f"#SBATCH --comment={quote_directive(value)}" for value in [*values, AWKWARD, "back\\slash"]]
    # The last line is invalid, so that sbatch prints what it read and contacts no controller.
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


def test_render_refuses_setup_with_a_syntax_error() -> None:
    with pytest.raises(UserError, match="setup is not valid bash"):
        render_batch_script(BatchJob("t", Path("/r"), Path("/d")), Site(setup=("if true; then",)))


@pytest.mark.parametrize("path", ["/a\nb", "/a\\b"])
def test_render_refuses_paths_that_slurm_cannot_use(path: str) -> None:
    with pytest.raises(UserError, match="use another"):
        render_batch_script(BatchJob("t", Path(path), Path("/d")), Site())


def test_render_refuses_paths_that_cannot_be_mounted(make_container: Callable[[str], Site]) -> None:
    for kind in ("apptainer", "pyxis"):
        with pytest.raises(UserError, match="cannot be mounted"):
            render_batch_script(BatchJob("t", Path("/a:b"), Path("/d")), make_container(kind))


@pytest.fixture
def make_container() -> Callable[[str], Site]:
    return lambda kind: Site(container=Apptainer(image="i") if kind == "apptainer" else Pyxis(image="i"))
