"""`vigil track`: what it prints, and mistakes that it names."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from vigil.cli import build
from vigil_data.errors import Failure, UserError
from vigil_data.lineage import Input, Node, record
from vigil_training.runs.run import Run, open_run
from vigil_training.tracking import parts


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(build(), ["track", *map(str, arguments)])


@pytest.fixture
def tracked(make_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run with one unsent part, which has no whole record, and lineage."""
    monkeypatch.setattr(parts, "SETTLE_SECONDS", 0.0)
    recipe = make_recipe(tracking__mode="offline")
    run = open_run(recipe, recipe.model_dump_json(), tmp_path / "runs" / "scam")
    run.thresholds.write_text("{}")
    part = run.path / "wandb" / f"offline-run-20260101_000000-{run.run_id}" / f"run-{run.run_id}.wandb"
    part.parent.mkdir(parents=True)
    part.write_bytes(b":W&B\xe1\xbe\x00")
    record(Node("run", run.run_id, "scam", str(run.path)), [Input("dataset", "da" * 32, "data", "posts", "/data/posts")])
    return run


def test_status_lists_what_is_unsent(tracked: Run, tmp_path: Path) -> None:
    (tmp_path / "runs" / "untracked").mkdir()
    done = call("status", tmp_path / "runs")
    assert done.exit_code == 0, done.exception
    row = next(line for line in done.output.splitlines() if tracked.run_id in line)
    assert row.split()[-4:] == ["1", "1", "to", "send"]
    assert f"1 of 1 have something to send: `vigil track sync --all {tmp_path / 'runs'}`" in done.output


def test_dry_run_lists_parts_and_artifacts_and_asks_no_server(tracked: Run, wandb_server: Any) -> None:
    done = call("sync", tracked.path, "--dry-run")
    assert done.exit_code == 0, done.exception
    assert done.output.splitlines() == [
        f"{tracked.path}: 1 part, 1 artifact",
        f"  offline-run-20260101_000000-{tracked.run_id}  7 bytes",
        f"  used dataset-posts ({'da' * 6})",
    ]
    assert wandb_server.requests == 0


def test_a_run_that_the_ledger_does_not_know_is_named(tracked: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIGIL_WORKSPACE", str(tmp_path / "another"))
    done = call("sync", tracked.path, "--dry-run")
    assert done.output.endswith(
        f"  the ledger of {tmp_path / 'another'} has no record of it; name the workspace of its training with VIGIL_WORKSPACE\n"
    ), done.exception


def test_sync_sends_the_runs_of_a_folder_and_then_nothing(tracked: Run, wandb_server: Any, tmp_path: Path) -> None:
    wandb_server.runs.add(tracked.run_id)
    done = call("sync", "--all", tmp_path / "runs")
    assert done.exit_code == 0, done.exception
    page = f"{wandb_server.url}/team/vigil/runs/{tracked.run_id}"
    assert done.output == f"{tracked.path}: sent 0 parts, 1 artifact: {page}\n", "a part without a record is removed"
    assert call("sync", tracked.path).output == f"{tracked.path}: nothing to send\n"
    sent = json.loads((tracked.path / "wandb" / "sent.jsonl").read_text())
    assert (sent["verb"], sent["artifact"]) == ("used", "dataset-posts:v0")
    assert "sent" in call("status", tmp_path / "runs").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name the runs to send, or the folder that holds them with --all DIR; not both"),
        (("runs/a", "--all", "runs"), "not both"),
        (("--all", "absent"), "absent: no such folder"),
        (("absent",), "absent: no such run folder"),
        (("{run}", "--project", "a/b/c"), "--project a/b/c: must be PROJECT or ENTITY/PROJECT"),
    ],
)
def test_sync_names_the_mistake(arguments: tuple[str, ...], message: str, tracked: Run) -> None:
    error = call("sync", *(each.format(run=tracked.path) for each in arguments)).exception
    assert isinstance(error, UserError)
    assert message in str(error)


def test_sync_without_a_key_states_what_to_do_and_loses_nothing(
    tracked: Run, wandb_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    error = call("sync", tracked.path).exception
    assert isinstance(error, Failure)
    assert str(error) == (
        f"{tracked.path}: {wandb_server.url}: no API key for 127.0.0.1; run `wandb login`; nothing is lost: repeat "
        f"`vigil track sync {tracked.path}`"
    )
    assert len(list((tracked.path / "wandb").glob("offline-run-*/*.wandb"))) == 1
