"""Suite runs on a bundle: all modalities, without torch, with the scorer's numbers."""

import subprocess
import sys

import numpy as np
import pytest

from vigil.workflows.functional_tests import SuiteOptions, run_suite
from vigil.workflows.suite_datasets import build_suite
from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_serving.runtime.scorer import Scorer

SUITE = """\
name: mixed
labels: {scam: x, tobacco: y, weapons: z}
lexicons: {word: [one, two, three, four, five, six]}
functionalities:
  written:
    expect: {scam: 1, weapons: 0}
    templates: ["say {word} and {word2}"]
    pairs: [{kind: leetspeak}]
  seen:
    expect: {tobacco: 0}
    items:
      - image: [{text: "{word}"}, {draw: plain}]
        audio: [{file: tone.wav}]
    pairs: [{kind: exchange, name: unseen, image: [], expect: {tobacco: 1}}]
"""


@pytest.fixture
def suite(tmp_path):
    import soundfile

    soundfile.write(tmp_path / "tone.wav", 0.3 * np.sin(np.arange(4000) / 9).astype(np.float32), 8_000)
    (tmp_path / "mixed.yaml").write_text(SUITE)
    return tmp_path / "mixed.yaml"


def test_run_suite_of_a_bundle_equals_its_scorer(exported, suite, tmp_path):
    ran = run_suite(exported.bundle, str(suite), to=tmp_path / "out")
    assert ran.results.skipped == ["weapons"]
    assert ran.results.thresholds == {label: exported.thresholds[label] for label in ("scam", "tobacco")}
    build_suite(suite, tmp_path / "made")
    dataset = Dataset(tmp_path / "made")
    items = dataset.take(dataset.rows())
    decisions = {decision.id: decision for decision in Scorer(exported.bundle).score(items)}
    assert len(decisions) == ran.table.num_rows == 2 * 30 + 2 * 6
    for row in ran.table.to_pylist():
        assert row["probability.scam"] == pytest.approx(decisions[row["id"]].probabilities["scam"], abs=1e-6)
        assert row["presence"] == decisions[row["id"]].presence
    case = next(case for case in ran.results.findings.cases if case.name == "written")
    right = sum("scam" in decisions[item.id].labels for item in items if item.columns["functionality"] == "written")
    assert case.labels["scam"].accuracy.hits == right
    assert (case.items, case.labels["tobacco"].accuracy.count) == (30, 0)
    assert ran.results.findings.pairs.overall.labels["tobacco"].follows.count == 6


def test_run_suite_writes_next_to_the_bundle_by_default(bundle_copy, suite):
    before = {path: path.read_bytes() for path in bundle_copy.rglob("*") if path.is_file()}
    ran = run_suite(bundle_copy, str(suite), options=SuiteOptions(replicates=0))
    assert ran.folder == bundle_copy.with_name("copy-suites") / "mixed"
    assert {path: path.read_bytes() for path in bundle_copy.rglob("*") if path.is_file()} == before


def test_run_suite_refuses_other_labels_before_scoring(exported, suite):
    text = SUITE.replace("scam: x, tobacco: y, ", "").replace("scam: 1, ", "").replace("tobacco", "weapons")
    suite.write_text(text)
    with pytest.raises(UserError, match="no label in common: the model has scam, promotion, tobacco; the suite weapons"):
        run_suite(exported.bundle, str(suite))


def test_run_suite_builds_the_demo_suite_from_its_seed(exported, tmp_path):
    pytest.importorskip("hibari")
    one, again, other = (
        run_suite(exported.bundle, "demo", to=tmp_path / name, options=SuiteOptions(items=12, seed=seed, replicates=0))
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert one.table.num_rows == 24
    assert one.table.equals(again.table)
    assert not one.table.equals(other.table)
    assert one.results.suite == "demo"
    assert one.results.skipped == ["gambling", "weapons"]
    assert one.results.facts["suite"] == "demonstration, seed 3"
    assert one.results.findings.pairs.pairs == 12
    assert "rerendered" in {case.name for case in one.results.findings.cases}


def test_run_suite_of_a_bundle_does_not_import_torch(exported, suite, tmp_path):
    program = (
        "import sys\nfrom pathlib import Path\nfrom vigil.workflows.functional_tests import run_suite\n"
        f"run_suite(Path({str(exported.bundle)!r}), {str(suite)!r}, to=Path({str(tmp_path / 'out')!r}))\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
