"""Sync: whatever interrupts or repeats it, the server ends with one run and one graph, and nothing is lost."""

import json
import shutil
from pathlib import Path

import pytest
import wandb

from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import sha256_file
from vigil_data.lineage import Input, Node, read_ledger, record
from vigil_training.runs.run import Run, open_run
from vigil_training.tracking import artifacts, upload
from vigil_training.tracking.parts import STEP_METRIC
from vigil_training.tracking.sync import sending
from vigil_training.tracking.sync.sending import find_unsent, sync_run

DATASET, BUNDLE = "da" * 32, "b0" * 32


@pytest.fixture
def make_run(make_recipe, tmp_path):
    """A function that makes a run of two starts, tracked offline, with its lineage in the ledger."""

    def make(name="run", starts=2, init_from=None):
        recipe = make_recipe(tracking__mode="offline", tracking__entity="team")
        run = open_run(recipe, recipe.model_dump_json(), tmp_path / name)
        (run.path / "wandb").mkdir()
        identity = {"id": run.run_id, "name": name, "project": "vigil", "entity": "team", "mode": "offline", "resume": "allow"}
        for start in range(starts):
            with wandb.init(dir=run.path, settings=wandb.Settings(silent=True, console="off"), **identity) as tracked:
                for step in range(3 * start + 1, 3 * start + 4):
                    tracked.log({"train/loss": 1 / step, STEP_METRIC: step}, step=step)
            # Names have seconds, and these starts have milliseconds between them.
            Path(tracked.settings.sync_dir).rename(run.path / "wandb" / f"offline-run-20260101_00000{start}-{run.run_id}")
        run.thresholds.write_text("{}")
        checkpoint = run.checkpoints / "step-00000006"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text(json.dumps({"run": name}))
        weights = Node("checkpoint", sha256_file(checkpoint / "manifest.json"), checkpoint.name, str(checkpoint))
        node = Node("run", run.run_id, name, str(run.path))
        record(
            node,
            [
                Input("dataset", DATASET, "data", "posts", "/data/posts"),
                *([init_from.as_input("init_from")] if init_from else []),
            ],
        )
        record(weights, [node])
        record(Node("bundle", BUNDLE if name == "run" else "b1" * 32, "scam"), [weights])
        return run, weights

    return make


def history(server, run):
    rows = server.history[run.run_id]
    return [rows[number]["_step"] for number in sorted(rows)]


def test_a_sync_that_is_killed_repeated_and_made_from_a_copy_ends_with_one_graph(make_run, wandb_server, tmp_path, monkeypatch):
    run, weights = make_run()
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy, symlinks=True)
    unsent = find_unsent(run, read_ledger())
    assert (len(unsent.parts), [step.verb for step in unsent.steps]) == (2, ["used", "logged", "logged"])

    recorded = sending.record_sent

    def record_used(run, target, step, name):
        if step.verb == "logged":
            raise ZeroDivisionError("killed")
        recorded(run, target, step, name)

    with monkeypatch.context() as killed:  # After the server has the first checkpoint, before it is recorded here.
        killed.setattr(sending, "record_sent", record_used)
        with pytest.raises(Failure, match="killed; nothing is lost: repeat `vigil track sync"):
            sync_run(run)
    sent = sync_run(run)
    assert (sent.parts, len(sent.artifacts), len(sent.known)) == (0, 1, 1)
    graph = {
        (run.run_id, "used", f"dataset-posts:{DATASET}"),
        (run.run_id, "logged", f"checkpoint-{run.run_id}:{weights.digest}"),
        (run.run_id, "logged", f"bundle-{run.run_id}:{BUNDLE}"),
    }
    assert wandb_server.artifacts.graph() - {(None, "logged", f"dataset-posts:{DATASET}")} == graph
    assert history(wandb_server, run) == [1, 2, 3, 4, 5, 6]
    before = wandb_server.artifacts.graph()
    assert not find_unsent(run, read_ledger())
    with monkeypatch.context() as unasked:
        unasked.setattr(artifacts, "open_target", lambda *_: pytest.fail("the server is asked though nothing is left to send"))
        assert sync_run(run).page == ""

    shutil.move(run.path, tmp_path / "gone")
    copied = Run(copy)
    sync_run(copied)
    assert history(wandb_server, copied) == [1, 2, 3, 4, 5, 6]
    assert wandb_server.artifacts.graph() == before
    assert len(wandb_server.artifacts.committed()) == 3
    assert [path.name for path in (copy / "wandb").glob(".artifacts-*")] == []


def test_uses_of_a_bundle_are_noted_and_its_promotion_is_linked_once(make_run, wandb_server):
    run, _ = make_run(starts=0)
    wandb_server.runs.add(run.run_id)
    assert len(sync_run(run).artifacts) == 3
    bundle = Input("bundle", BUNDLE, "live")
    record(Node("traffic", "7a" * 32, "log", "/logs/scam", {"source": "serve"}), [bundle])
    facts = {"by": "ann", "registry": "model/scam"}
    record(Node("promotion", "9b" * 32, "champion", "/models/promotions.jsonl", facts), [bundle])
    sent = sync_run(run)
    assert (sent.artifacts, [str(step).split(" (")[0] for step in sent.uses]) == (
        [],
        [
            f"noted traffic log at bundle-{run.run_id}",
            f"noted promotion champion at bundle-{run.run_id}",
            f"linked promotion champion at bundle-{run.run_id}",
        ],
    )
    [version] = [version for version in wandb_server.artifacts.committed() if version.type == "bundle"]
    used_by = version.metadata["used_by"]
    assert set(used_by) == {f"traffic:{'7a' * 32}", f"promotion:{'9b' * 32}"}
    assert used_by[f"traffic:{'7a' * 32}"]["facts"] == {"source": "serve"}
    assert version.metadata["digest"] == BUNDLE
    assert wandb_server.artifacts.linked()["wandb-registry-model/scam:champion"] == BUNDLE
    assert not find_unsent(run, read_ledger())
    asked = wandb_server.requests
    assert sync_run(run).uses == []
    assert wandb_server.requests == asked


def test_a_server_that_refuses_an_artifact_loses_nothing(make_run, wandb_server):
    run, _ = make_run(starts=0)
    wandb_server.runs.add(run.run_id)
    wandb_server.refusals["CommitArtifact"] = "storage quota exceeded"
    with pytest.raises(Failure, match=f"^{run.path}: {wandb_server.url}: .*storage quota exceeded.*; nothing is lost: repeat"):
        sync_run(run)
    assert wandb_server.artifacts.committed() == []
    wandb_server.refusals.clear()
    assert len(sync_run(run).artifacts) == 3
    assert len(wandb_server.artifacts.committed()) == 3


def test_a_checkpoint_that_a_run_used_is_logged_by_the_run_that_made_it(make_run, wandb_server):
    first, weights = make_run("run", starts=0)
    second, _ = make_run("second", starts=0, init_from=weights)
    wandb_server.runs |= {first.run_id, second.run_id}
    [waiting] = sync_run(second).waiting
    assert waiting.startswith(
        f"{second.path}: checkpoint-{first.run_id}, which it used, is of the run {first.path}, which has not "
    )
    assert waiting.endswith(f"send both with `vigil track sync {first.path} {second.path}`")
    for run in (first, second):
        assert sync_run(run).waiting == []
    edges = wandb_server.artifacts.graph()
    used = f"checkpoint-{first.run_id}:{weights.digest}"
    assert {edge for edge in edges if edge[2] == used} == {(first.run_id, "logged", used), (second.run_id, "used", used)}


def test_a_project_that_was_renamed_is_named_with_the_option_that_chooses_another(make_run, wandb_server):
    run, _ = make_run(starts=1)
    assert sync_run(run, lineage=False).parts == 1
    wandb_server.runs.clear()
    with pytest.raises(Failure, match=f"team/vigil has no run {run.run_id}.*; name the project with --project"):
        sync_run(run)
    assert wandb_server.artifacts.versions == []


def test_a_run_that_is_trained_keeps_its_last_part_and_one_that_was_not_tracked_is_refused(
    make_run, make_recipe, tmp_path, monkeypatch
):
    run, _ = make_run()
    monkeypatch.setattr(sending, "read_state", lambda path: type("State", (), {"name": "running", "reason": "process 1"}))
    unsent = find_unsent(run, read_ledger())
    assert (len(unsent.parts), unsent.steps, unsent.running) == (1, (), "process 1")
    recipe = make_recipe()
    with pytest.raises(UserError, match="was not tracked"):
        sync_run(open_run(recipe, recipe.model_dump_json(), tmp_path / "untracked"))


def test_a_second_process_does_not_send_the_same_run(make_run, wandb_server):
    from vigil_data.filesystem import locked

    run, _ = make_run()
    with (
        locked(run.path / "wandb" / upload.LOCK, "busy"),
        pytest.raises(UserError, match="is sending it; try again when it is done"),
    ):
        sync_run(run)
    assert wandb_server.requests == 0


def test_a_torn_last_line_of_what_was_sent_is_ignored_and_the_next_one_is_whole(make_run, wandb_server):
    run, _ = make_run(starts=0)
    step = find_unsent(run, read_ledger()).steps[0]
    target = artifacts.Target(artifacts.server_url(), "team", "vigil")
    (run.path / "wandb" / sending.SENT).write_text('{"time": "2026')
    sending.record_sent(run, target, step, "dataset-posts:v0")
    assert [each.node.kind for each in find_unsent(run, read_ledger()).steps] == ["checkpoint", "bundle"]
