"""The demonstration's stages: each runs once, an interrupted one goes on, and what is found is summed up."""

import json

import pytest

from vigil.workflows.demo_pipeline import demonstrate, stages
from vigil_data.errors import UserError
from vigil_data.items import MODALITIES

FOUND = {"fused": 0.95, "text": 0.5, "image": 0.4, "audio": 0.3}


class Broken(Exception):
    pass


def runner(ran, breaks_at=None):
    """Does what the commands would leave behind."""

    def run(stage):
        if stage.name == breaks_at:
            raise Broken
        ran.append(stage.name)
        stage.product.parent.mkdir(parents=True, exist_ok=True)
        _, _, model = stage.name.partition("evaluate ")
        text = json.dumps({"overall": {"macro": {"average_precision": {"value": FOUND[model], "labels": 5}}}}) if model else ""
        stage.product.write_text(text)

    return run


def test_stages_run_in_order_and_are_summed_up(tmp_path):
    ran = []
    summary = demonstrate(tmp_path / "demo", 0, runner(ran))
    assert ran == [stage.name for stage in stages(tmp_path / "demo", 0)]
    assert summary.fused_macro_ap == 0.95
    assert summary.single_macro_ap == {modality: FOUND[modality] for modality in MODALITIES}
    assert list(summary.seconds) == ran
    written = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert written == summary._asdict()


def test_an_interrupted_demonstration_goes_on(tmp_path):
    first, second = [], []
    with pytest.raises(Broken):
        demonstrate(tmp_path, 0, runner(first, breaks_at="train image"))
    demonstrate(tmp_path, 0, runner(second))
    assert second[0] == "train image"
    assert first + second == [stage.name for stage in stages(tmp_path, 0)]


def test_a_finished_demonstration_runs_nothing_again_but_what_was_deleted(tmp_path):
    demonstrate(tmp_path, 0, runner([]))
    ran = []
    demonstrate(tmp_path, 0, runner(ran))
    assert ran == []
    (tmp_path / "scores.parquet").unlink()
    demonstrate(tmp_path, 0, runner(ran))
    assert ran == ["score"]


def test_another_seed_needs_another_folder(tmp_path):
    demonstrate(tmp_path, 0, runner([]))
    with pytest.raises(UserError, match="seed 0"):
        demonstrate(tmp_path, 1, runner([]))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="neither a demonstration nor an empty folder"):
        demonstrate(tmp_path, 0, runner([]))
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
