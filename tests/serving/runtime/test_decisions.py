"""Decisions: calibration, thresholds and policy of a bundle, in the runtime and in batch scoring."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from vigil_data.dataset.dataset import write
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_evaluation.calibration.calibrators import IDENTITY, Calibration, Calibrator, FittedCalibration, LabelCalibration
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_serving.bundle import manifest
from vigil_serving.parity.cases import make_item
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.scoring.score import score_dataset

LABELS = ("scam", "promotion", "tobacco")
LANGUAGES = (None, "de", "en")


@pytest.fixture
def items(exported) -> list[Item]:
    patterns = [["text"], ["text", "image"], ["audio"], ["image"], ["text", "image", "audio"], []]
    made = [make_item(patterns[n % 6], n, exported.inputs) for n in range(24)]
    columns = [
        {k: v for k, v in {"language": LANGUAGES[n % 3], "market": "fr" if n % 4 == 0 else None}.items() if v} for n in range(24)
    ]
    return [Item(f"{n:02}", item.text, item.image, item.audio, {}, columns[n]) for n, item in enumerate(made)]


def with_policy(copy: Path, middle: dict[str, float]) -> Path:
    """Return the bundle with calibration by language, and with policy thresholds between its probabilities."""
    own = {"de": Calibrator("temperature", {"temperature": 0.25})}
    labels = {label: LabelCalibration(IDENTITY, own, {}, 0, 0) for label in LABELS}
    FittedCalibration(Calibration("language", labels), None, None).write(copy / manifest.CALIBRATION)
    cells = {
        (None, None): {label: {"limit": np.float32(middle[label]).item()} for label in LABELS},
        ("fr", None): {"scam": {"remove": 0.0}},
    }
    policy = CompiledPolicy("house", 3, ("allow", "limit", "remove"), LABELS, None, cells)
    policy.write(copy / manifest.POLICY)
    manifest.write_manifest(copy)
    return copy


@pytest.fixture
def bundle(bundle_copy: Path, exported, items: list[Item]) -> Path:
    raw_NL = Scorer(exported.bundle, threads=1).raw_probabilities(items)
    middles = np.sort(raw_NL, axis=0)[18:20].astype(np.float64).mean(axis=0)
    return with_policy(bundle_copy, dict(zip(LABELS, middles.tolist(), strict=True)))


def test_scorer_calibrates_by_the_group_of_each_item(bundle: Path, exported, items: list[Item]) -> None:
    raw_NL = Scorer(exported.bundle, threads=1).raw_probabilities(items).astype(np.float64)
    cooled_NL = 1 / (1 + ((1 - raw_NL) / raw_NL) ** 4)
    for row, decision in enumerate(Scorer(bundle, threads=1).score(items)):
        wanted = cooled_NL[row] if items[row].columns.get("language") == "de" else raw_NL[row]
        np.testing.assert_allclose(list(decision.probabilities.values()), wanted, atol=1e-5)
        assert decision.labels == tuple(label for label in LABELS if decision.probabilities[label] >= exported.thresholds[label])


def test_scorer_applies_the_policy_to_calibrated_probabilities_with_reasons(bundle: Path, items: list[Item]) -> None:
    policy = CompiledPolicy.read(bundle / manifest.POLICY)
    decisions = Scorer(bundle, threads=1).score(items)
    assert {decision.action for decision in decisions} == {"allow", "limit", "remove"}
    for item, decision in zip(items, decisions, strict=True):
        if item.columns.get("market") == "fr":
            assert decision.action == "remove"
            assert [reason.label for reason in decision.reasons] == ["scam"]
            continue
        cuts = policy.thresholds()
        calls = [label for label in LABELS if decision.probabilities[label] >= cuts[label]["limit"]]
        assert decision.action == ("limit" if calls else "allow")
        assert [(r.label, r.threshold) for r in decision.reasons] == [(label, cuts[label]["limit"]) for label in calls]
        explained = {evidence.label for evidence in decision.evidence}
        assert explained == ({*calls, *decision.labels} if decision.presence != "none" else set())


def test_score_dataset_writes_actions_and_reasons(bundle: Path, items: list[Item], tmp_path: Path) -> None:
    write(tmp_path / "dataset", items)
    found = score_dataset(bundle, tmp_path / "dataset", tmp_path / "out.parquet", threads=1)
    table = pq.read_table(tmp_path / "out.parquet")
    rows = {row["id"]: row for row in table.to_pylist()}
    for decision in Scorer(bundle, threads=1).score(items):
        row = rows[decision.id]
        assert (row["action"], row["review"], row["presence"]) == (decision.action, False, decision.presence)
        assert [(r["label"], r["action"]) for r in row["reasons"]] == [(r.label, r.action) for r in decision.reasons]
    assert found.actions == {action: table.column("action").to_pylist().count(action) for action in ("allow", "limit", "remove")}
    assert table.schema.metadata[b"vigil.policy"] == b"house version 3"
    assert table.schema.metadata[b"vigil.policy_digest"].decode() == CompiledPolicy.read(bundle / manifest.POLICY).digest


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (manifest.CALIBRATION, lambda facts: facts["calibration"]["labels"].pop("scam"), "calibration.json: calibration"),
        (manifest.POLICY, lambda facts: facts.update(version=4), "policy.json: policy.digest: does not match"),
    ],
)
def test_scorer_refuses_inconsistent_calibration_or_policy(bundle: Path, name: str, change, message: str) -> None:
    facts = json.loads((bundle / name).read_text())
    change(facts)
    (bundle / name).write_text(json.dumps(facts))
    manifest.write_manifest(bundle)
    with pytest.raises(UserError, match=message):
        Scorer(bundle)


def test_export_refuses_a_policy_of_other_labels(exported, tmp_path: Path) -> None:
    from vigil_serving.export.pipeline import export_model
    from vigil_serving.export.publish import Provenance

    policy = CompiledPolicy("house", 1, ("allow", "limit"), ("weapons",), None, {(None, None): {"weapons": {"limit": 0.5}}})
    with pytest.raises(UserError, match="the policy house names weapons, which the taxonomy tiny does not have"):
        export_model(
            exported.model,
            exported.inputs,
            exported.taxonomy,
            {},
            [],
            to=tmp_path / "b",
            provenance=Provenance("x"),
            policy=policy,
        )
