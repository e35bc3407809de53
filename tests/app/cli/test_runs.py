"""`vigil runs` as its user calls it."""

import json
import subprocess

import pytest
import typer
from run_folders import curve, make_run, write_evaluation
from typer.testing import CliRunner

from vigil.cli.tracking import runs as command
from vigil_data.errors import UserError


@pytest.fixture
def vigil(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)

    def vigil(*arguments):
        done = CliRunner().invoke(app, ["runs", *arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return vigil


def test_runs_of_an_empty_folder_says_how_to_make_one(vigil, tmp_path):
    assert vigil() == "no runs in runs or sweeps; `vigil train RECIPE` makes one\n"
    (tmp_path / "runs").mkdir()
    assert vigil("runs") == "no runs in runs; `vigil train RECIPE` makes one\n"
    assert json.loads(vigil("--json")) == []
    with pytest.raises(UserError, match="absent: no such folder"):
        vigil("absent")


def test_runs_lists_runs_and_trials_newest_first(vigil, tmp_path):
    make_run(tmp_path / "runs" / "a", lines=curve(100, 0.7), evaluation={"average_precision": 0.6, "auroc": 0.9})
    make_run(tmp_path / "runs" / "[red]b\x1b", state="failed", number=1)
    make_run(tmp_path / "sweeps" / "s" / "trials" / "0001", lines=curve(50, 0.5), state="preempted", number=2)
    header, *lines, last = vigil().splitlines()
    assert header.split() == [*command._HEADER, "reason"]
    assert [line.split()[:2] for line in lines] == [
        ["sweeps/s/trials/0001", "preempted"],
        ["runs/[red]b\\x1b", "failed"],
        ["runs/a", "finished"],
    ]
    assert lines[1].endswith("the disk is full")
    assert lines[2].split()[2:9] == ["100", "0.7", "0.6", "0.9", "test", "posts@3", "c0ffeec+"]
    assert last == "best: of validation/macro_ap"
    assert len(vigil("--limit", "2").splitlines()) == 4
    assert [line.split() for line in vigil("--columns", "name, optimizer.lr", "--sort", "name").splitlines()] == [
        ["name", "optimizer.lr"],
        ["runs/[red]b\\x1b", "0.001"],
        ["runs/a", "0.001"],
        ["sweeps/s/trials/0001", "0.001"],
    ]
    assert vigil("--where", "macro_ap > .9") == "none of 3 runs meets the condition\n"
    [found] = json.loads(vigil("list", "--json", "--where", "state = finished"))
    assert (found["run"], found["metrics"]["step"], found["evaluations"]["test"]["auroc"]) == ("runs/a", 100, 0.9)
    assert json.loads(vigil("--json", "--columns", "state", "--limit", "1")) == [{"state": "preempted"}]
    assert {"optimizer.lr", "validation/ap/spam", "evaluation/test/auroc/spam"} <= set(vigil("--columns", "help").splitlines())


def test_runs_diff_prints_what_differs(vigil, tmp_path):
    make_run(tmp_path / "a", lines=curve(100, 0.7), evaluation={"auroc": 0.8}, environment={"libraries": {"torch": "2.9"}})
    make_run(
        tmp_path / "b", lines=curve(100, 0.9), evaluation={"auroc": 0.9}, lr=0.1, environment={"libraries": {"torch": "2.10"}}
    )
    text = vigil("diff", "a", "b")
    rows = {" ".join(line.split()) for line in text.splitlines()}
    assert {"recipe a b", "name a b", "optimizer.lr 0.001 0.1", "libraries.torch 2.9 2.10", "best 0.7 0.9"} <= rows
    assert "auroc 0.800 (0.780 to 0.820) 0.900 (0.880 to 0.920) +0.100" in rows
    assert text.splitlines()[-1] == "the same: data, code"
    assert "different datasets" not in text
    assert "auroc            spam" in vigil("diff", "a", "b", "--labels")
    found = json.loads(vigil("diff", "--json", "a", "b"))
    assert found["recipe"][1] == {"key": "optimizer.lr", "values": [0.001, 0.1]}
    with pytest.raises(UserError, match="two runs or more"):
        vigil("diff", "a")
    with pytest.raises(UserError, match="c: no such run folder"):
        vigil("diff", "a", "c")


def test_runs_diff_of_three_runs_and_evaluations_of_other_data(vigil, tmp_path):
    for name in "abc":
        make_run(tmp_path / name, lr=0.1 if name == "c" else 0.2)
        write_evaluation(tmp_path / name / "evaluation" / "test", {"f1": 0.5}, dataset=f"posts version {name}")
    text = vigil("diff", "a", "b", "c")
    assert "optimizer.lr  0.2  0.2  0.1" in text
    assert "different datasets or versions" in text
    assert "change" not in text
    for name in "ab":
        (tmp_path / name / "environment.json").unlink()
    assert vigil("diff", "a", "b").splitlines()[-1] == "not recorded: data, code, environment"


def test_runs_diff_counts_rows_and_cells_between_versions(vigil, tmp_path):
    from vigil_data.dataset.dataset import Dataset, write
    from vigil_data.items import Item

    items = [Item(str(n), ("text",), (), (), {"spam": None if n else 1.0}, {"split": "train"}) for n in range(4)]
    write(tmp_path / "posts", items[:3])
    first = Dataset(tmp_path / "posts").version
    write(tmp_path / "posts", items[3:], append=True)
    second = Dataset(tmp_path / "posts").version
    for name, version in (("a", first), ("b", second), ("c", 99)):
        make_run(tmp_path / name, dataset={"path": str(tmp_path / "posts"), "version": version})
    assert f"posts, version {first} to {second}: 1 row added\n" in vigil("diff", "a", "b")
    assert "cannot be compared" in vigil("diff", "a", "c")


def test_runs_diff_lists_the_commits_between(vigil, tmp_path):
    def git(*arguments):
        options = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *options, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    commits = []
    for subject in ("one", "two", "three"):
        git("commit", "-q", "--allow-empty", "-m", subject)
        commits.append(git("rev-parse", "HEAD"))
    for name, commit in (("a", commits[0]), ("b", commits[2]), ("c", "f" * 40)):
        make_run(tmp_path / name, environment={"git": {"commit": commit, "dirty": False}})
    lines = vigil("diff", "a", "b").splitlines()
    place = lines.index(f"{commits[0][:7]} and {commits[2][:7]}, only in the other: 2 commits")
    assert [line.split()[-1] for line in lines[place + 1 : place + 3]] == ["three", "two"]
    assert f"{commits[0][:7]} and fffffff: this checkout does not have both" in vigil("diff", "a", "c")


def test_runs_board_writes_a_page_and_watches_until_interrupted(vigil, tmp_path, monkeypatch):
    make_run(tmp_path / "runs" / "a", lines=curve(100))
    assert vigil("board", "--to", "pages/b.html", "--where", "state = finished") == "pages/b.html: 1 run\n"
    assert '"refresh":0.0' in (tmp_path / "pages" / "b.html").read_text()
    pages = []

    def sleep(seconds):
        pages.append((tmp_path / "board.html").read_text())
        make_run(tmp_path / "runs" / f"r{len(pages)}", number=len(pages))
        if len(pages) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", sleep)
    with pytest.raises((KeyboardInterrupt, AssertionError)):
        vigil("board", "--watch", "--every", "3")
    pages.append((tmp_path / "board.html").read_text())
    assert [page.count("<tr data-run") for page in pages] == [1, 2, 3, 4]
    assert ['"refresh":3.0' in page for page in pages] == [True, True, True, False]


def test_runs_reads_a_run_with_a_hundred_thousand_lines(vigil, tmp_path):
    make_run(tmp_path / "runs" / "long", lines=curve(1_000_000))
    assert vigil().splitlines()[1].split()[2:4] == ["1,000,000", "0.8"]
