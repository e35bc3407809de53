"""Compiled policies: decisions equal a loop over thresholds, alone and in batches; files round-trip."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_evaluation.policy.compiled_policy import ActionDecision, CompiledPolicy, Reason
from vigil_evaluation.policy.constraints import Appeals, ConstraintResult, Rule

ORDER = ("allow", "label", "limit", "age_gate", "review", "remove")
LABELS = ("scam", "hate", "spam")


def f(value: float) -> float:
    return float(np.float32(value))


def policy(cells: Mapping, review: str | None = "before", labels: tuple[str, ...] = LABELS) -> CompiledPolicy:
    used = {action for thresholds in cells.values() for by in thresholds.values() for action in by}
    actions = tuple(action for action in ORDER if action == "allow" or action in used)
    return CompiledPolicy("test", 1, actions, labels, review if "review" in used else None, cells)


def slowly(of: CompiledPolicy, probabilities: Mapping[str, float], presence: str, market: str | None) -> tuple[str, bool, set]:
    """Return one item's action, whether it is reviewed, and the action of each label, computed by a loop in float64."""
    known = {(market, presence): 0, (market, None): 1, (None, presence): 2, (None, None): 3}
    thresholds = of.cells[min((cell for cell in of.cells if cell in known), key=known.__getitem__)]
    called = {
        (label, action)
        for label, by in thresholds.items()
        for action, cut in by.items()
        if probabilities[label] >= cut and action != "allow"
    }
    strictest = {
        label: max((a for other, a in called if other == label), key=ORDER.index) for label in {label for label, _ in called}
    }
    if not strictest:
        return "allow", False, set()
    winner = max(strictest.values(), key=ORDER.index)
    told = set(strictest.items())
    if of.review == "alongside":
        milder = {(label, a) for label, a in called if ORDER.index(a) < ORDER.index("review")}
        best = {
            label: max((a for other, a in milder if other == label), key=ORDER.index) for label in {label for label, _ in milder}
        }
        told |= {(label, action) for label, action in best.items() if strictest[label] == "review"}
        if winner == "review":
            return max(best.values(), key=ORDER.index, default="review"), True, told
    return winner, winner == "review", told


shares = st.integers(0, 20).map(lambda i: f(i / 20))
thresholds = st.dictionaries(st.sampled_from(LABELS), st.dictionaries(st.sampled_from(ORDER[1:]), shares, max_size=5), max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    base=thresholds,
    others=st.dictionaries(st.sampled_from([("de", None), (None, "text"), ("de", "text"), ("fr", None)]), thresholds, max_size=3),
    review=st.sampled_from(["before", "alongside"]),
    rows=st.lists(
        st.tuples(shares, shares, shares, st.sampled_from(["text", "image"]), st.sampled_from(["de", "fr", None])), max_size=8
    ),
)
def test_decide_equals_a_loop(base: dict, others: dict, review: str, rows: list) -> None:
    made = policy({(None, None): base, **others}, review)
    columns = ("unused", "spam", "hate", "scam")
    values = np.array([[0.99, *row[:3]] for row in rows]).reshape(-1, 4)
    presence, market = [row[3] for row in rows], [row[4] for row in rows]
    verdicts = made.decide(values, columns, presence, market)
    codes = made.decide_codes(values.astype(np.float32), columns, presence, market)
    for i, row in enumerate(rows):
        action, looks, told = slowly(made, dict(zip(columns[1:], row[:3], strict=True)), row[3], row[4])
        assert (verdicts[i].action, verdicts[i].review) == (action, looks)
        assert {(reason.label, reason.action) for reason in verdicts[i].reasons} == told
        assert (made.actions[codes.actions_N[i]], bool(codes.review_N[i])) == (action, looks)
        assert all(reason.probability >= reason.threshold for reason in verdicts[i].reasons)
        if told:
            first = verdicts[i].reasons[0]
            assert first.action == action
            assert first.label == next(label for label in LABELS if (label, action) in told)
            assert codes.label_N[i] == LABELS.index(first.label)
        # An item is decided alone as in a batch.
        assert made.decide(values[i : i + 1], columns, presence[i : i + 1], market[i : i + 1]) == [verdicts[i]]


def test_decide_gives_reasons_with_label_action_probability_and_threshold() -> None:
    made = policy(
        {(None, None): {"scam": {"remove": f(0.9)}, "hate": {"review": f(0.5), "limit": f(0.3)}, "spam": {"limit": f(0.4)}}},
        "alongside",
    )
    removed, limited, allowed = made.decide([[0.95, 0.6, 0.2], [0.1, 0.6, 0.7], [0.1, 0.2, 0.3]], LABELS, ["text"] * 3)
    assert removed == ActionDecision(
        "remove",
        (
            Reason("scam", "remove", f(0.95), f(0.9)),
            Reason("hate", "review", f(0.6), f(0.5)),
            Reason("hate", "limit", f(0.6), f(0.3)),
        ),
        False,
    )
    assert (limited.action, limited.review) == ("limit", True)
    assert [(reason.label, reason.action) for reason in limited.reasons] == [
        ("hate", "limit"),
        ("spam", "limit"),
        ("hate", "review"),
    ]
    assert allowed == ActionDecision("allow", (), False)


def test_decide_is_the_same_in_float32_and_float64() -> None:
    cut = f(0.7)
    made = policy({(None, None): {"spam": {"limit": cut}}}, labels=("spam",))
    around = np.array([np.nextafter(np.float32(cut), np.float32(0)), cut, np.nextafter(np.float32(cut), np.float32(1))])
    for kind in (np.float32, np.float64):
        assert [v.action for v in made.decide(around.astype(kind)[:, None], ["spam"], ["text"] * 3)] == [
            "allow",
            "limit",
            "limit",
        ]


def test_decide_allows_nan_and_accepts_no_items() -> None:
    made = policy({(None, None): {"spam": {"remove": 0.0}}}, labels=("spam",))
    assert made.decide([[np.nan]], ["spam"], ["text"])[0].action == "allow"
    assert made.decide(np.empty((0, 1)), ["spam"], []) == []
    assert len(made.decide_codes(np.empty((0, 1)), ["spam"], []).actions_N) == 0


def test_decide_refuses_wrong_arguments() -> None:
    made = policy({(None, None): {"spam": {"remove": f(0.5)}}, ("de", None): {}}, labels=("spam",))
    with pytest.raises(UserError, match="no probabilities for its labels spam"):
        made.decide([[0.5]], ["hate"], ["text"])
    with pytest.raises(ValueError, match="must be"):
        made.decide([[0.5, 0.5]], ["spam"], ["text"])
    with pytest.raises(ValueError, match="2 presences were given for 1 items"):
        made.decide([[0.5]], ["spam"], ["text", "text"])
    with pytest.raises(ValueError, match="0 markets were given for 1 items"):
        made.decide([[0.5]], ["spam"], ["text"], [])


def full() -> CompiledPolicy:
    rule = Rule("remove", "spam", "de", "precision", 0.95, 0.9, "language", 500)
    made = policy({(None, None): {"spam": {"remove": f(0.9), "review": f(0.4)}}, ("de", "text"): {}}, "alongside")
    return replace(
        made,
        costs={"review": 0.4},
        appeals={"remove": Appeals(0.3, 0.05, 2.0)},
        severities={"spam": 2.0},
        constraints=(
            ConstraintResult(rule, "tr", 0.97, 0.951, 0.98, 0.955, 0.005, 400, 410, True, True),
            ConstraintResult(rule, None, None, None, None, None, None, 0, 0, None, None),
        ),
        facts={"run": "runs/x"},
    )


def test_compiled_policy_round_trips_through_a_file(tmp_path: Path) -> None:
    made = full()
    made.write(tmp_path / "policy.json")
    read = CompiledPolicy.read(tmp_path / "policy.json")
    assert read == made
    assert read.digest == made.digest == json.loads((tmp_path / "policy.json").read_text())["digest"]
    assert replace(made, version=2).digest != made.digest
    assert [path.name for path in tmp_path.iterdir()] == ["policy.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=2), r"policy\.format: is 2; this Vigil reads 1"),
        (lambda d: d.pop("labels"), "policy: lacks labels"),
        (lambda d: d.update(more=1), "policy: has unknown more"),
        (lambda d: d.update(actions=["remove", "allow"]), "policy.actions: must be allow and some of label, .*, in this order"),
        (lambda d: d.update(labels=["spam", "spam"]), "policy.labels: names a label twice"),
        (lambda d: d.update(review=None), "policy.review: does not go with"),
        (lambda d: d["cells"].pop(0), "policy.cells: lack the one for all"),
        (lambda d: d["cells"].append(d["cells"][0]), r"policy\.cells\.2: repeats the market and presence of another cell"),
        (lambda d: d["cells"][0]["thresholds"].update(x={}), r"thresholds: has unknown x"),
        (lambda d: d["cells"][0]["thresholds"]["spam"].update(limit=0.5), r"thresholds\.spam: has unknown limit"),
        (lambda d: d["cells"][0]["thresholds"]["spam"].update(remove=0.9), r"spam\.remove: 0\.9 is not a float32 number"),
        (lambda d: d["cells"][0]["thresholds"]["spam"].update(remove=1.5), r"spam\.remove: must be in \[0, 1\]"),
        (lambda d: d["cells"][0]["thresholds"]["spam"].update(remove=None), r"spam\.remove: must be a finite number"),
        (lambda d: d["constraints"][0].update(met="yes"), r"constraints\.0\.met: must be true or false"),
        (lambda d: d["constraints"][0]["rule"].update(metric="luck"), r"rule\.metric: must be one of"),
        (lambda d: d["appeals"].update(limit=d["appeals"]["remove"]), r"appeals: has unknown limit"),
        (lambda d: d["appeals"]["remove"].update(wrong=2), r"appeals\.remove\.wrong: must be in \[0, 1\]"),
        (lambda d: d["cells"][0]["thresholds"]["spam"].update(remove=0.5), r"policy\.digest: does not match the content"),
    ],
)
def test_read_refuses_an_altered_policy_in_one_line(change, message: str, tmp_path: Path) -> None:
    content = full().to_dict()
    change(content)
    (tmp_path / "policy.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        CompiledPolicy.read(tmp_path / "policy.json")
    assert len(caught.value.lines) == 1
    assert str(tmp_path) in caught.value.lines[0]


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"format": 1}', "null"])
def test_read_refuses_files_that_are_not_policies(text: str, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(text)
    with pytest.raises(UserError, match="compile it again"):
        CompiledPolicy.read(tmp_path / "policy.json")


def test_read_refuses_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"policy\.json does not exist; compile a policy"):
        CompiledPolicy.read(tmp_path / "policy.json")


def test_compiled_policy_imports_numpy_and_the_standard_library_alone() -> None:
    script = (
        "import sys; import vigil_evaluation.policy.compiled_policy; "
        "print(sorted({'scipy', 'pydantic', 'pyarrow', 'sklearn', 'numba', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.prove
def test_decide_on_a_million_items_of_twenty_labels_takes_seconds(proofs) -> None:
    items = proofs(100_000, 1_000_000)
    labels = tuple(f"l{i}" for i in range(20))
    cuts = {label: {"limit": f(0.97), "review": f(0.98), "remove": f(0.995)} for label in labels}
    made = policy({(None, None): cuts, (None, "text"): cuts}, "alongside", labels)
    random = np.random.default_rng(0)
    probabilities = random.random((items, 20), np.float32)
    presence = random.choice(["text", "image"], items).tolist()
    began = perf_counter()
    codes = made.decide_codes(probabilities, labels, presence)
    coded = perf_counter()
    verdicts = made.decide(probabilities, labels, presence)
    ended = perf_counter()
    print(f"{items:,} items: {coded - began:.1f} s as codes, {ended - coded:.1f} s as verdicts with reasons")
    assert [made.actions.index(verdict.action) for verdict in verdicts[:1000]] == codes.actions_N[:1000].tolist()
    assert ended - began < 20e-6 * items + 2
