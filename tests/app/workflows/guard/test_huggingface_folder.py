"""A guard's Hugging Face folder is a bundle in the lineage, and is pushed as one."""

from pathlib import Path

from vigil.workflows.guard.huggingface_folder import export_guard_folder
from vigil.workflows.tracking.registry import pull, push
from vigil_data.lineage import read_ledger
from vigil_training.runs.run import Run


def test_guard_folder_is_recorded_as_a_bundle_of_its_run_and_pushed(trained_guard: Run, tmp_path: Path) -> None:
    written = export_guard_folder(trained_guard, tmp_path / "guard", text_only=True, examples=1)
    pushed = push(tmp_path / "guard", str(tmp_path / "registry"))
    assert pull(str(tmp_path / "registry"), tmp_path / "here").digest == written.bundle.digest
    graph = read_ledger()
    bundle = graph.find(tmp_path / "here")
    assert (bundle.digest, bundle.facts["layout"]) == (written.bundle.digest, "Hugging Face")
    assert [node.kind for node in graph.walk(bundle, "up")][:3] == ["bundle", "checkpoint", "run"]
    assert graph.find(trained_guard.path).digest == trained_guard.run_id
    assert [edge.node.facts["version"] for edge in graph.outputs(bundle)] == [pushed.version]
