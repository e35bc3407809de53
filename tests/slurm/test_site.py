"""Site profiles are found by name, and their mistakes are told by file and line."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from vigil_data.errors import UserError
from vigil_slurm.profiles import find, folders
from vigil_slurm.site import Apptainer, Site
from vigil_training.recipe.resolve import read_spec

REPOSITORY = Path(__file__).resolve().parents[2]


def read_site(path: Path | None, values: Mapping[str, object]) -> Site:
    return read_spec(Site, path, "site profile", "partition: gpu", values)


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a profile, named from the folder in which the test runs."""
    monkeypatch.chdir(tmp_path)
    return Path("site.yaml")


def mistakes(path: Path | None, **values: object) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_site(path, values)
    return list(caught.value.lines)


def test_without_a_profile_everything_has_a_default() -> None:
    assert read_site(None, {"time": None}) == Site()


def test_the_command_line_comes_before_the_profile(profile: Path) -> None:
    profile.write_text("partition: gpu\ntime: '60'\nmax_requeues: 3\n")
    site = read_site(profile, {"time": "90", "partition": None, "max_requeues": 0})
    assert (site.partition, site.time, site.max_requeues) == ("gpu", "90", 0)


def test_all_mistakes_are_told_with_their_lines(profile: Path) -> None:
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
    assert mistakes(profile, qos="a\nb") == [
        "command line: qos: must be one line of text",
        "site.yaml:1: partitoin: is not a key of a site (did you mean partition?)",
        "site.yaml:2: time: must be text, not 60",
        "site.yaml:3: gpus: must be true or false, not 'maybe'",
        "site.yaml:5: container.kind: must be none, apptainer or pyxis, not 'docker'",
        "site.yaml:7: network.nccl.PATH: is not a variable of NCCL's, whose names begin with NCCL_ (export others in setup)",
        "site.yaml:8: options[0]: must be options of sbatch, each such as '--mem=64G', not 'mem'",
        "site.yaml:9: signal_before: must be at least 0, not -1",
    ]


@pytest.mark.parametrize("time", ["60", "60:00", "12:00:00", "1-0", "1-12:30", "2-00:00:00", "UNLIMITED"])
def test_times_as_slurm_writes_them(time: str) -> None:
    assert read_site(None, {"time": time}).time == time


@pytest.mark.parametrize("time", ["", "soon", "1h", "12:0", "1:00:00:00", "1-"])
def test_other_times(time: str) -> None:
    (line,) = mistakes(None, time=time)
    assert line.startswith("command line: time: must be a time as Slurm writes it")


def test_a_container_of_another_kind_replaces_the_block(profile: Path) -> None:
    profile.write_text("container: {kind: apptainer, image: /a.sif}\n")
    assert read_site(profile, {}).container == Apptainer(image="/a.sif")
    profile.write_text("container: {kind: pyxis}\n")
    (line,) = mistakes(profile)
    assert line.startswith("site.yaml:1: container.image: is missing (a squashfs file")


def test_what_is_no_profile(profile: Path) -> None:
    assert mistakes(profile) == ["there is no file site.yaml"]
    profile.write_text("- a\n")
    assert mistakes(profile) == ["site.yaml:1: holds a list on top; a site profile is a mapping of keys such as `partition: gpu`"]


def test_names_are_looked_up_in_the_project_and_then_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    project, home = (tmp_path / folder for folder in folders(environment))
    home.mkdir(parents=True)
    (home / "a.yaml").touch()
    assert find("a", environment) == home / "a.yaml"
    project.mkdir(parents=True)
    (project / "a.yaml").touch()
    (project / "cluster.yaml").touch()
    assert find("a", environment) == Path("slurm/sites/a.yaml")
    assert find("./a", environment) == Path("a")
    assert find("b.yaml", environment) == Path("b.yaml")
    assert find(None, environment) is None
    assert find(None, {**environment, "VIGIL_SITE": "a"}) == Path("slurm/sites/a.yaml")
    assert find("b.yaml", {**environment, "VIGIL_SITE": "a"}) == Path("b.yaml")
    with pytest.raises(UserError, match=r"--profile clustr: no clustr.yaml in slurm/sites or .*did you mean cluster"):
        find("clustr", environment)
    with pytest.raises(UserError, match=r"VIGIL_SITE z: no z.yaml .*there are a, cluster"):
        find(None, {**environment, "VIGIL_SITE": "z"})


def test_the_home_is_used_without_the_xdg_variable() -> None:
    assert folders({"HOME": "/home/x"})[1] == Path("/home/x/.config/vigil/sites")


def test_shipped_profiles_are_right() -> None:
    shipped = sorted((REPOSITORY / "slurm" / "sites").glob("*.yaml"))
    assert {path.stem for path in shipped} >= {"dev-cluster", "example"}
    for path in shipped:
        read_site(path, {})


def test_the_example_says_everything() -> None:
    example = read_site(REPOSITORY / "slurm" / "sites" / "example.yaml", {})
    assert example.model_fields_set >= set(Site.model_fields)
    assert not [name for name in Site.model_fields if getattr(example, name) == getattr(Site(), name) and name != "gpus"]


def test_a_variable_names_the_profile_for_good(tmp_path: Path) -> None:
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
    assert "#SBATCH --partition=mine\n" in done.stdout
