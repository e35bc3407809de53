"""Site profiles: search by name, and errors with file and line."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from fake_slurm import directives

from vigil_data.errors import UserError
from vigil_data.yaml_files.read_spec import read_spec
from vigil_slurm.site import Apptainer, Site, find_site, site_folders

REPOSITORY = Path(__file__).resolve().parents[2]


def read_site(path: Path | None, values: Mapping[str, object]) -> Site:
    return read_spec(Site, path, "site profile", "partition: gpu", values)


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of a profile, relative to the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    return Path("site.yaml")


def errors_of(path: Path | None, **values: object) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_site(path, values)
    return list(caught.value.lines)


def test_site_has_a_default_for_every_key() -> None:
    assert read_site(None, {"time": None}) == Site()


def test_site_command_line_overrides_the_profile(profile: Path) -> None:
    profile.write_text("partition: gpu\ntime: '60'\nmax_requeues: 3\n")
    site = read_site(profile, {"time": "90", "partition": None, "max_requeues": 0})
    assert (site.partition, site.time, site.max_requeues) == ("gpu", "90", 0)


def test_site_reports_all_errors_with_their_lines(profile: Path) -> None:
    profile.write_text(
        "partitoin: gpu\n"
        "time: 60\n"
        "gpus: maybe\n"
        "container:\n"
        "  kind: docker\n"
        "network:\n"
        "  nccl: {PATH: /x}\n"
        "options: [mem]\n"
        "signal_before: -1\n"
    )
    assert errors_of(profile, qos="a\nb") == [
        "command line: qos: must be one line of text",
        "site.yaml:1: partitoin: is not a key of a site (did you mean partition?)",
        "site.yaml:2: time: must be text, not 60",
        "site.yaml:3: gpus: must be true or false, not 'maybe'",
        "site.yaml:5: container.kind: must be none, apptainer or pyxis, not 'docker'",
        "site.yaml:7: network.nccl.PATH: is not a variable of NCCL: their names begin with NCCL_ (export others in setup)",
        "site.yaml:8: options[0]: must be an option of sbatch such as '--mem=64G', not 'mem'",
        "site.yaml:9: signal_before: must be at least 0, not -1",
    ]


@pytest.mark.parametrize("time", ["60", "60:00", "12:00:00", "1-0", "1-12:30", "2-00:00:00", "UNLIMITED"])
def test_site_accepts_slurm_times(time: str) -> None:
    assert read_site(None, {"time": time}).time == time


@pytest.mark.parametrize("time", ["", "soon", "1h", "12:0", "1:00:00:00", "1-"])
def test_site_refuses_other_times(time: str) -> None:
    (line,) = errors_of(None, time=time)
    assert line.startswith("command line: time: must be a Slurm time such as")


def test_site_container(profile: Path) -> None:
    profile.write_text("container: {kind: apptainer, image: /a.sif}\n")
    assert read_site(profile, {}).container == Apptainer(image="/a.sif")
    profile.write_text("container: {kind: pyxis}\n")
    (line,) = errors_of(profile)
    assert line.startswith("site.yaml:1: container.image: is missing (squashfs file")


def test_site_refuses_files_that_are_no_profile(profile: Path) -> None:
    assert errors_of(profile) == ["there is no file site.yaml"]
    profile.write_text("- a\n")
    assert errors_of(profile) == [
        "site.yaml:1: holds a list on top; a site profile is a mapping of keys such as `partition: gpu`"
    ]


def test_find_site_searches_the_project_and_then_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    project, home = (tmp_path / folder for folder in site_folders(environment))
    home.mkdir(parents=True)
    (home / "a.yaml").touch()
    assert find_site("a", environment) == home / "a.yaml"
    project.mkdir(parents=True)
    (project / "a.yaml").touch()
    (project / "cluster.yaml").touch()
    assert find_site("a", environment) == Path("slurm/sites/a.yaml")
    assert find_site("./a", environment) == Path("a")
    assert find_site("b.yaml", environment) == Path("b.yaml")
    assert find_site(None, environment) is None
    assert find_site(None, {**environment, "VIGIL_SITE": "a"}) == Path("slurm/sites/a.yaml")
    assert find_site("b.yaml", {**environment, "VIGIL_SITE": "a"}) == Path("b.yaml")
    with pytest.raises(UserError, match=r"--profile clustr: no clustr.yaml in slurm/sites or .*did you mean cluster"):
        find_site("clustr", environment)
    with pytest.raises(UserError, match=r"VIGIL_SITE z: no z.yaml .*there are a, cluster"):
        find_site(None, {**environment, "VIGIL_SITE": "z"})


def test_site_folders_without_the_xdg_variable() -> None:
    assert site_folders({"HOME": "/home/x"})[1] == Path("/home/x/.config/vigil/sites")


def test_shipped_sites_are_valid() -> None:
    shipped = sorted((REPOSITORY / "slurm" / "sites").glob("*.yaml"))
    assert {path.stem for path in shipped} >= {"dev-cluster", "example"}
    for path in shipped:
        read_site(path, {})


def test_example_site_sets_every_key() -> None:
    example = read_site(REPOSITORY / "slurm" / "sites" / "example.yaml", {})
    assert example.model_fields_set >= set(Site.model_fields)
    assert not [name for name in Site.model_fields if getattr(example, name) == getattr(Site(), name) and name != "gpus"]


def test_submit_reads_the_site_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("partition: mine\n")
    recipe = str(REPOSITORY / "recipes" / "demo-text.yaml")
    done = subprocess.run(
        [sys.executable, "-c", "from vigil.cli import main; main()", "submit", recipe, "--dry-run"],
        cwd=tmp_path,
        env={**os.environ, "VIGIL_SITE": "mine.yaml"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert directives(done.stdout)["partition"] == "mine"
