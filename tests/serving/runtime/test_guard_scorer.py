"""Scorer of a guard: decisions of the trained guard, marks of what was cut, and other policy texts."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from vigil_data.decode import Decoder
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_data.loading.batch import collate
from vigil_data.loading.packing import pack
from vigil_data.prompts.clauses import digest_of, make_clause
from vigil_data.prompts.tokenizer import PromptTokenizer
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_serving.bundle.policy_text import LabelText, PolicyText, TextEvaluation
from vigil_serving.bundle.policy_text_file import read_policy_text
from vigil_serving.parity.cases import make_item
from vigil_serving.runtime.scorer import Scorer

OTHER = "Category: scam\nDefinition: Names a cat, or a dog."
NEW_YAML = "name: new\nheads: {conduct: {labels: {scam: {definition: 'Names a cat, or a dog.'}}}}\n"


@pytest.fixture(scope="module")
def scorer(exported_guard) -> Scorer:
    return Scorer(exported_guard.bundle, threads=1)


@pytest.fixture(scope="module")
def items(exported_guard) -> list[Item]:
    patterns = [["text", "image"], ["text"], [], ["image"]]
    return [make_item(patterns[n % 4], n, exported_guard.inputs, placed=True) for n in range(12)]


def trained(exported_guard, items: list[Item]) -> np.ndarray:
    packed = pack([Decoder(exported_guard.inputs, ()).decode(item) for item in items])
    with torch.no_grad():
        return torch.sigmoid(exported_guard.model(collate(packed)).logits_NL).numpy()


def array(decisions) -> np.ndarray:
    return np.array([list(decision.probabilities.values()) for decision in decisions])


def reading(exported_guard, **texts: str):
    """The trained guard with other policy texts, without the runtime's code."""
    model, tokenizer = exported_guard.model, PromptTokenizer((exported_guard.bundle / "tokenizer/tokenizer.json").read_text())
    clauses = [make_clause(c.label, texts.get(c.label, c.text), tokenizer.text) for c in model.clauses]
    model.clauses, former = tuple(clauses), model.clauses
    return model, former


def test_guard_scorer_decides_like_the_trained_guard(exported_guard, scorer: Scorer, items: list[Item]) -> None:
    decisions = scorer.score(items)
    expected_NL = trained(exported_guard, items)
    assert_allclose(array(decisions), expected_NL, atol=1e-5)
    thresholds = list(exported_guard.thresholds.values())
    for decision, expected_L in zip(decisions, expected_NL, strict=True):
        assert decision.labels == tuple(
            label for label, p, cut in zip(exported_guard.thresholds, expected_L, thresholds, strict=True) if p >= cut
        )
        assert decision.policy_text == {c.label: digest_of(c.text) for c in exported_guard.model.clauses}
        assert (decision.not_evaluated, decision.uncalibrated) == ((), ())
    assert np.all(expected_NL[:, 0] >= expected_NL[:, 1]), "a parent is at least as probable as its child"


def test_guard_scorer_encodes_a_repeated_picture_once(exported_guard, monkeypatch: pytest.MonkeyPatch) -> None:
    from vigil_serving.runtime import onnx_sessions

    encoded = []
    encode = onnx_sessions.encode
    monkeypatch.setattr(
        onnx_sessions, "encode", lambda session, s, limit: encoded.append(len(s.item)) or encode(session, s, limit)
    )
    scorer = Scorer(exported_guard.bundle, threads=1)
    item = make_item(["text", "image"], 2, exported_guard.inputs)
    first = scorer.score([item, replace(item, id="again")])
    [later] = scorer.score([item])
    assert sum(encoded) == len(set(item.image))
    assert scorer.cache.hits == len(item.image) + len(item.text)
    assert later.probabilities == pytest.approx(first[0].probabilities, abs=1e-6)


def test_guard_scorer_names_the_segments_that_do_not_fit(exported_guard, scorer: Scorer) -> None:
    words = " ".join(["a red cat and a blue dog"] * 12)
    short, long = Item("short", ("a cat",)), Item("long", ("title", words), roles={"text": ("title", "body")})
    decisions = scorer.score([short, long])
    assert decisions[0].truncated == ()
    cut = decisions[1].truncated
    assert cut
    assert {(c.modality, c.span.index, c.span.role) for c in cut} == {("text", 1, "body")}
    room = exported_guard.model.pieces.max_tokens
    assert 0 < sum(c.tokens for c in cut) < 4 * 24 < room
    assert_allclose(array(decisions), trained(exported_guard, [short, long]), atol=1e-5)


def test_other_policy_text_decides_and_is_marked(exported_guard, items: list[Item], tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(NEW_YAML)
    before = Scorer(exported_guard.bundle, threads=1)
    scorer = Scorer(before.bundle, threads=1, policy_text=read_policy_text(tmp_path / "new.yaml", before.bundle))
    decisions = scorer.score(items)
    model, former = reading(exported_guard, scam=OTHER)
    try:
        expected_NL = trained(exported_guard, items)
    finally:
        model.clauses = former
    assert_allclose(array(decisions), expected_NL, atol=1e-5)
    own_NL = array(before.score(items))
    assert np.abs(own_NL - expected_NL)[:, 0].max() > 1e-3, "the text matters"
    assert_allclose(expected_NL[:, 1:], own_NL[:, 1:], atol=1e-5, err_msg="other labels keep their texts")
    for decision in decisions:
        assert decision.policy_text["scam"] == digest_of(OTHER)
        assert decision.policy_text["tobacco"] == before.score(items[:1])[0].policy_text["tobacco"]
        assert (decision.not_evaluated, decision.uncalibrated) == (("scam",), ("scam",))
    assert scorer.model.thresholds == {"scam": 0.5, "promotion": 0.331, "tobacco": 0.621}


def test_calibration_and_threshold_belong_to_the_text(exported_guard, items: list[Item], tmp_path: Path) -> None:
    platt = {"method": "platt", "parameters": {"slope": 2.0, "intercept": -1.0}}
    fitted = {"known": 9, "positive": 4, "log_loss": {}, "pooled": platt, "groups": {}}
    measured = TextEvaluation("data version 1", "test", 20, 7, 0.7, 0.8)
    bundle = Scorer(exported_guard.bundle, threads=1).bundle
    texts = PolicyText({"scam": LabelText(OTHER, measured, fitted, 0.7)}, bundle.digest)
    texts.write(tmp_path / "policy_text.json")
    read = read_policy_text(tmp_path / "policy_text.json", bundle)
    assert read == texts
    raw = array(Scorer(bundle, threads=1, policy_text=PolicyText({"scam": LabelText(OTHER)})).score(items))
    decisions = Scorer(bundle, threads=1, policy_text=tmp_path / "policy_text.json").score(items)
    odds_N = np.log(raw[:, 0] / (1 - raw[:, 0]))
    assert_allclose(array(decisions)[:, 0], 1 / (1 + np.exp(1 - 2 * odds_N)), atol=1e-5)
    assert_allclose(array(decisions)[:, 1:], raw[:, 1:], atol=1e-6)
    for decision in decisions:
        assert (decision.not_evaluated, decision.uncalibrated) == ((), ())
        assert ("scam" in decision.labels) == (decision.probabilities["scam"] >= 0.7)


def test_the_text_of_the_bundle_changes_nothing(exported_guard, items: list[Item]) -> None:
    own = Scorer(exported_guard.bundle, threads=1)
    texts = PolicyText({clause.label: LabelText(clause.text) for clause in own.bundle.prompt.clauses})
    again = Scorer(own.bundle, sessions=own.sessions, policy_text=texts)
    assert again.model == own.model
    assert again.score(items[:3]) == own.score(items[:3])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"theft": LabelText("Definition: takes things")}, r"has no label theft; its labels are scam, promotion, tobacco"),
        ({"scam": LabelText("  ")}, r"the text of scam is empty"),
        ({"scam": LabelText("red cat " * 300)}, r"the policy of scam has \d+ tokens .* of max_tokens 208, 0 are left"),
    ],
)
def test_unusable_policy_texts_are_one_line_errors(exported_guard, labels, message: str) -> None:
    bundle = Scorer(exported_guard.bundle, threads=1).bundle
    with pytest.raises(UserError, match=message) as error:
        Scorer(bundle, policy_text=PolicyText(labels))
    assert len(error.value.lines) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "name: new\nheads: {conduct: {labels: {scam: {severity: 2}}}}\n", r"a\.yaml: no policy text for scam"),
        ("a.yaml", "name: new\nheads: {conduct: {labels: {scam: {defintion: x}}}}\n", r"a\.yaml:2: .*defintion"),
        ("a.json", "name: new", r"a\.json: cannot be read as JSON .* ends in \.yaml"),
        ("a.json", '{"labels": {"scam": {"txt": 1}}}', r"a\.json: .*labels\.scam"),
        ("none.json", None, r"none\.json: cannot be read"),
    ],
)
def test_unreadable_policy_text_files_name_the_file(exported_guard, tmp_path: Path, name: str, content, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    bundle = Scorer(exported_guard.bundle, threads=1).bundle
    with pytest.raises(UserError, match=message):
        read_policy_text(tmp_path / name, bundle)


def test_texts_evaluated_with_another_bundle_are_refused(exported_guard) -> None:
    bundle = Scorer(exported_guard.bundle, threads=1).bundle
    with pytest.raises(UserError, match=rf"evaluated with the bundle 000000000000, not with {bundle.digest[:12]}"):
        Scorer(bundle, policy_text=PolicyText({"scam": LabelText(OTHER)}, "0" * 64))


def test_a_fusion_model_reads_no_policy_text(exported) -> None:
    with pytest.raises(UserError, match="the model reads no policy text"):
        Scorer(exported.bundle, policy_text=PolicyText({"scam": LabelText(OTHER)}))


def test_a_policy_uses_labels_of_two_strictnesses(exported_guard, items: list[Item]) -> None:
    """Tiers of strictness are labels of one text each: here scam is the strict one and promotion the loose one."""
    scorer = Scorer(exported_guard.bundle, threads=1)
    plain = array(scorer.score(items))
    strict, loose = np.median(plain[:, 0]), np.median(plain[:, 1])
    tiers = CompiledPolicy(
        name="tiers",
        version=1,
        actions=("allow", "limit", "remove"),
        labels=("scam", "promotion"),
        review=None,
        cells={(None, None): {"scam": {"remove": float(strict)}, "promotion": {"limit": float(loose)}}},
    )
    decisions = Scorer(replace(scorer.bundle, policy=tiers), sessions=scorer.sessions).score(items)
    expected = ["remove" if s >= strict else "limit" if p >= loose else "allow" for s, p in plain[:, :2].astype(np.float32)]
    assert [decision.action for decision in decisions] == expected
    assert len(set(expected)) > 1


PROGRAM = """
import json, sys
from vigil_serving.runtime import Scorer

scorer = Scorer(sys.argv[1], threads=1, policy_text=sys.argv[2])
[decision] = scorer.score([{"id": "1", "text": ["a red cat"]}])
heavy = ("torch", "transformers", "jinja2", "pydantic", "ruamel", "yaml", "pyarrow", "onnx", "gguf")
print(json.dumps([decision.not_evaluated, [name for name in heavy if name in sys.modules]]))
"""


def test_guard_scorer_imports_neither_torch_nor_templates_nor_pydantic(exported_guard, tmp_path: Path) -> None:
    PolicyText({"scam": LabelText(OTHER)}).write(tmp_path / "policy_text.json")
    command = [sys.executable, "-c", PROGRAM, str(exported_guard.bundle), str(tmp_path / "policy_text.json")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [["scam"], []]
