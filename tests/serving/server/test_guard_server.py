"""`vigil serve` with a guard and other policy texts: the same items, and decisions that name what was not evaluated."""

import json
from pathlib import Path

import pytest

from vigil_data.items import Item
from vigil_data.prompts.clauses import digest_of
from vigil_serving.bundle.policy_text import LabelText, PolicyText
from vigil_serving.parity.cases import make_item
from vigil_serving.runtime.scorer import Scorer

from .conftest import as_json

NEW_YAML = "name: new\nheads: {conduct: {labels: {scam: {definition: 'Names a cat, or a dog.'}}}}\n"
DIGEST = digest_of("Category: scam\nDefinition: Names a cat, or a dog.")


def test_server_decides_under_other_policy_texts(exported_guard, start, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(NEW_YAML)
    server = start(exported_guard.bundle, "--policy-text", str(tmp_path / "new.yaml"))
    made = make_item(["text", "image"], 2, exported_guard.inputs)
    item = Item("one", made.text, made.image)
    texts = PolicyText({"scam": LabelText("Category: scam\nDefinition: Names a cat, or a dog.")})
    [expected] = Scorer(exported_guard.bundle, threads=1, policy_text=texts).score([item])
    answer = server.post("/v1/score", json={"items": [as_json(item)]}).json()
    [decision] = answer["decisions"]
    assert decision["probabilities"] == pytest.approx(dict(expected.probabilities), abs=1e-5)
    assert (decision["not_evaluated"], decision["uncalibrated"]) == (["scam"], ["scam"])
    assert decision["policy_text"]["scam"] == DIGEST
    about = server.get("/v1/bundle").json()
    assert (about["policy_text"]["scam"], about["not_evaluated"], about["thresholds"]["scam"]) == (DIGEST, ["scam"], 0.5)
    tensor = {"name": "item", "datatype": "BYTES", "shape": [1], "data": [json.dumps(as_json(item))]}
    outputs = server.post("/v2/models/tiny-guard/infer", json={"inputs": [tensor]}).json()["outputs"]
    [same] = next(output["data"] for output in outputs if output["name"] == "decision")
    assert json.loads(same)["not_evaluated"] == ["scam"]
    assert "not evaluated with this bundle: scam" in server.log.read_text()
