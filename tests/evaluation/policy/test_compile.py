"""Policy compilation: constraints are confirmed on the items, and infeasible ones reported with the closest feasible bound."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_evaluation.policy.compile import compile_policy
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_evaluation.policy.constraint_check import check_rules
from vigil_evaluation.policy.infeasibility import InfeasiblePolicy, minimal_conflict
from vigil_evaluation.policy.policy_data import read_traffic
from vigil_evaluation.policy.specs import Policy

LABELS = ["spam", "scam", "hate"]
Make = Callable[..., pa.Table]
Written = Callable[[str], Policy]

SIMPLE = """
actions:
  remove: {must: [precision at least 85 %]}
  review: {must: [at most 4 % of traffic], cost: 0.4}
labels: {spam: [review, remove], scam: [review, remove], hate: [review]}
severities: {hate: 5}
"""


def compiled(policy: Policy, table: pa.Table, **more) -> CompiledPolicy:
    found = compile_policy(policy, table, LABELS, **more)
    assert isinstance(found, CompiledPolicy), found.lines
    return found


def infeasible(policy: Policy, table: pa.Table, **more) -> InfeasiblePolicy:
    found = compile_policy(policy, table, LABELS, **more)
    assert isinstance(found, InfeasiblePolicy)
    return found


def test_compile_policy_confirms_every_constraint_on_its_items(traffic: Make, written: Written) -> None:
    found = compiled(written(SIMPLE), traffic())
    assert [str(shown.rule) for shown in found.constraints] == ["precision at least 85 %"] * 2 + ["share of traffic at most 4 %"]
    for shown in found.constraints:
        assert shown.met
        assert shown.confirmed
        assert shown.low <= shown.estimate <= shown.high
        assert shown.margin == pytest.approx(abs(shown.bound - shown.rule.bound))
    assert found.severities == {"spam": 1.0, "scam": 1.0, "hate": 5.0}
    assert found.facts["items"] == "8,000"


def test_compile_policy_counts_constraints_as_by_hand(traffic: Make, written: Written) -> None:
    table = traffic()
    found = compiled(written(SIMPLE), table)
    cuts = found.thresholds()
    p, t = (
        {label: np.asarray(table.column(f"{kind}.{label}").to_numpy(), float) for label in LABELS}
        for kind in ("probability", "target")
    )
    spam = found.constraints[0]
    hit = (p["spam"] >= cuts["spam"]["remove"]) & ~np.isnan(t["spam"])
    assert (spam.count, spam.rows) == (int(t["spam"][hit].sum()), int(hit.sum()))
    removed = np.any([p[label] >= cuts[label].get("remove", 2) for label in LABELS], axis=0)
    looked_at = np.any([p[label] >= cuts[label].get("review", 2) for label in LABELS], axis=0) & ~removed
    assert (found.constraints[-1].count, found.constraints[-1].rows) == (int(looked_at.sum()), len(looked_at))


def test_compile_policy_ignores_unknown_targets(traffic: Make, written: Written) -> None:
    """Rows with unknown targets only do not change thresholds that depend on targets, whatever their probabilities."""
    policy = written(
        "presence: never\nactions: {remove: {must: [precision at least 85 %]}}\nlabels: {spam: [remove], scam: [remove]}"
    )
    table = traffic()
    more = traffic(seed=1, unknown=1.1).set_column(0, "id", pa.array([f"more-{i}" for i in range(8000)]))
    one, other = compiled(policy, table), compiled(policy, pa.concat_tables([table, more]))
    for a, b in zip(one.constraints, other.constraints, strict=True):
        # Candidates differ between the same known items, so counts may differ by a step of the grid.
        assert b.rows == pytest.approx(a.rows, rel=0.06)
        assert b.confirmed


def test_compile_policy_does_not_depend_on_the_order_of_items(traffic: Make, written: Written) -> None:
    table = traffic()
    order = np.random.default_rng(0).permutation(table.num_rows)
    policy = written(SIMPLE.replace("actions:", "presence: never\nactions:", 1))
    assert compiled(policy, table).cells == compiled(policy, table.take(order)).cells


def test_compile_policy_catches_less_under_a_stricter_constraint(traffic: Make, written: Written) -> None:
    table = traffic()
    cuts = [
        compiled(written(SIMPLE.replace("85 %", bound)), table).thresholds()["scam"]["remove"]
        for bound in ("80 %", "85 %", "90 %")
    ]
    assert cuts == sorted(cuts)


def test_compile_policy_places_thresholds_in_gaps(traffic: Make, written: Written) -> None:
    table = traffic()
    for label, by in compiled(written(SIMPLE), table).thresholds().items():
        p = table.column(f"probability.{label}").to_numpy()
        for cut in by.values():
            assert np.float32(cut) == cut
            assert not (p == np.float32(cut)).any()


def test_compile_policy_is_conservative_with_clustered_items(traffic: Make, written: Written) -> None:
    """Ten copies of every item by one author count as one item."""
    table = traffic(3000)
    policy = written("presence: never\nactions: {remove: {must: [precision at least 80 %]}}\nlabels: {scam: [remove]}")
    copies = pa.concat_tables([table.set_column(0, "id", pa.array([f"{k}-{i}" for i in range(3000)])) for k in range(10)])
    copies = copies.set_column(copies.column_names.index("author"), "author", pa.array(list(range(3000)) * 10))
    once, careful = compiled(policy, table), compiled(policy, copies, cluster="author")
    # As independent items, the copies seem to be labelled by their scores.
    careless = compiled(policy, copies, assume_random=True)
    cut = [found.thresholds()["scam"]["remove"] for found in (once, careless, careful)]
    assert cut[1] < cut[0]
    assert cut[2] == pytest.approx(cut[0], abs=0.05)
    assert careful.facts["unit"] == "author"


def test_compile_policy_confirms_what_it_has_shown_on_clustered_items(traffic: Make, written: Written) -> None:
    """The correlation within authors is the search's: estimated again at the threshold, it could contradict the promise."""
    policy = written("presence: never\nactions: {remove: {must: [precision at least 70 %]}}\nlabels: {scam: [remove]}")
    contradicted = 0
    for seed in range(25):
        random = np.random.default_rng(seed)
        # Few items of few authors, whose targets resemble each other: the estimates of the correlation differ by threshold.
        table = traffic(600, seed, unknown=0.0, author=np.repeat(np.arange(60), 10)[random.permutation(600)])
        found = compile_policy(policy, table, LABELS, cluster="author", assume_random=True)
        if isinstance(found, CompiledPolicy):
            assert all(result.confirmed for result in found.constraints if result.rule.label is not None)
            rules = [result.rule for result in found.constraints]
            own = check_rules(found, rules, read_traffic(table, found.labels, (), "author"))
            contradicted += any(result.confirmed is False for result in own if result.rule.label is not None)
    assert contradicted


def test_compile_policy_gives_markets_their_own_thresholds(traffic: Make, written: Written) -> None:
    policy = written(
        SIMPLE
        + "markets:\n  de: {actions: {remove: {must: [precision at least 92 % for scam, precision at least 80 % for spam]}}}\n"
    )
    table = traffic(16_000)
    found = compiled(policy, table)
    assert found.thresholds(market="de")["scam"]["remove"] > found.thresholds(market="us")["scam"]["remove"]
    assert found.thresholds(market="fr") == found.thresholds(market="us")
    german = [shown for shown in found.constraints if shown.rule.market == "de"]
    assert german[-1].rows == table.column("market").to_pylist().count("de")
    # The general thresholds are found on the other markets' items only.
    elsewhere = table.filter(pa.array([market == "us" for market in table.column("market").to_pylist()]))
    assert compiled(written(SIMPLE), elsewhere).thresholds() == found.thresholds()


def test_compile_policy_gives_presences_their_own_thresholds_where_it_pays(traffic: Make, written: Written) -> None:
    policy = written("actions: {remove: {must: [precision at least 90 %]}}\nlabels: {spam: [remove]}")
    same = compiled(policy, traffic(20_000))
    assert list(same.cells) == [(None, None)]
    # Log odds are too small for text and too large for text with image, so one threshold for both is wrong for both.
    table = traffic(20_000)
    p = table.column("probability.spam").to_numpy().astype(float)
    presence = np.array(table.column("presence").to_pylist())
    log_odds = np.log(p / (1 - p)) + np.where(presence == "text", -3.0, 3.0)
    skewed = table.set_column(
        table.column_names.index("probability.spam"),
        "probability.spam",
        pa.array((1 / (1 + np.exp(-log_odds))).astype(np.float32)),
    )
    found = compiled(policy, skewed)
    assert set(found.cells) == {(None, None), (None, "text"), (None, "text+image")}
    assert found.thresholds("text")["spam"]["remove"] < found.thresholds("text+image")["spam"]["remove"]
    assert any("catch" in fact for name, fact in found.facts.items() if name.startswith("note"))
    assert all(shown.confirmed for shown in found.constraints)


@pytest.mark.parametrize("bound", ["98 %", "99 %"])
def test_compile_policy_reports_the_closest_feasible_bound(bound: str, traffic: Make, written: Written) -> None:
    table = traffic(4000)
    text = "presence: never\nactions: {remove: {must: [precision at least %s]}}\nlabels: {hate: [remove]}"
    found = infeasible(written(text % bound), table)
    (problem,) = found.problems
    (nearest,) = problem.rules
    assert problem.place == "hate/remove"
    assert found.lines[1].startswith(
        f"hate/remove: precision at least {bound} cannot be shown at 95 % confidence: the best lower bound"
    )
    assert 0.5 < nearest.feasible_at < 0.98
    p, t = (np.asarray(table.column(f"{kind}.hate").to_numpy(), float) for kind in ("probability", "target"))
    hit = (p >= nearest.threshold) & ~np.isnan(t)
    assert (nearest.count, nearest.rows) == (int(t[hit].sum()), int(hit.sum()))
    # The reported bound is feasible, and a much closer one is not.
    compiled(written(text % f"{100 * nearest.feasible_at:.1f} %"), table)
    infeasible(written(text % f"{100 * nearest.feasible_at + 3:.1f} %"), table)
    assert found.to_dict()["problems"][0]["rules"][0]["feasible_at"] == nearest.feasible_at


def test_compile_policy_is_feasible_with_the_reported_number_of_labels(traffic: Make, written: Written) -> None:
    policy = written("presence: never\nactions: {remove: {must: [precision at least 90 %]}}\nlabels: {hate: [remove]}")
    (nearest,) = infeasible(policy, traffic(1500)).problems[0].rules
    assert nearest.kind == "positive"
    assert nearest.more is not None
    known = 1500 * 0.02 * 0.7
    compiled(policy, traffic(int(1.5 * 1500 * (known + nearest.more) / known)))


def test_compile_policy_names_a_language_with_too_few_negatives(traffic: Make, written: Written) -> None:
    policy = written(
        "actions: {remove: {must: [false-positive rate at most 0.5 % in every language with over 100 items]}}\n"
        "labels: {scam: [remove]}"
    )
    found = infeasible(policy, traffic(8000))
    (nearest,) = found.problems[0].rules
    assert (nearest.group, nearest.kind) == ("tr", "negative")
    assert "for tr" in found.lines[1]
    assert nearest.more is not None
    assert nearest.feasible_at > 0.005
    with pytest.raises(UserError, match="no value of language has over 9000 of the 8000 items"):
        compile_policy(
            written(
                "actions: {remove: {must: [false-positive rate at most 1 % in every language with over 9000 items]}}\n"
                "labels: {scam: [remove]}"
            ),
            traffic(),
            LABELS,
        )


def test_compile_policy_names_conflicting_constraints_together(traffic: Make, written: Written) -> None:
    policy = written("actions: {remove: {must: [precision at least 85 %, recall at least 95 %]}}\nlabels: {scam: [remove]}")
    found = infeasible(policy, traffic())
    assert (
        "no threshold is shown to satisfy precision at least 85 % and recall at least 95 % together; feasible with"
        in found.lines[1]
    )
    ways = found.lines[1].split("feasible with ")[1].split(", or with ")
    for way in ways:
        metric, _, bound = way.partition(" at least ")
        other = "recall at least 95 %" if metric == "precision" else "precision at least 85 %"
        text = f"actions: {{remove: {{must: [{metric} at least {bound}, {other}]}}}}"
        compiled(written(text + "\nlabels: {scam: [remove]}"), traffic())


def test_compile_policy_names_the_stricter_action_that_takes_too_much(traffic: Make, written: Written) -> None:
    """Review may take so many items that the false-positive rate of limit, which counts them, is exceeded before limit begins."""
    text = """
    actions:
      review: {must: [at most %s of traffic]}
      limit: {must: [false-positive rate at most %s, recall at least 10 %%]}
    labels: {scam: [limit, review]}
    """
    table = traffic(unknown=0)
    (line,) = infeasible(written(text % ("15 %", "3 %")), table).lines[1:]
    begin = (
        "scam/limit: no threshold below review (share of traffic at most 15 %) is shown to satisfy "
        "false positive rate at most 3 %; feasible with "
    )
    assert line.startswith(begin)
    own, budget = line.removeprefix(begin).split(", or with ")
    rate, share = own.removeprefix("false positive rate at most "), budget.split(" for review")[0].split("at most ")[1]
    compiled(written(text % ("15 %", rate)), table)
    compiled(written(text % (share, "3 %")), table)
    infeasible(written(text % (f"{float(share[:-2]) + 0.3} %", "3 %")), table)
    infeasible(written(text % ("15 %", f"{float(rate[:-2]) - 0.2} %")), table)


def test_compile_policy_names_the_stricter_label_action_that_takes_too_much(traffic: Make, written: Written) -> None:
    text = """
    presence: never
    actions:
      remove: {must: [precision at least %s]}
      limit: {must: [precision at least 60 %%]}
    labels: {scam: [limit, remove]}
    """
    table = traffic(unknown=0)
    (line,) = infeasible(written(text % "80 %"), table).lines[1:]
    assert line.startswith(
        "scam/limit: no threshold below remove (precision at least 80 %) is shown to satisfy precision at least"
    )
    stricter = line.split("or with precision at least ")[1].removesuffix(" for scam/remove")
    compiled(written(text % stricter), table)


def test_compile_policy_leaves_out_what_does_not_conflict(traffic: Make, written: Written) -> None:
    """Recall of scam exceeds the budget by itself; recall of spam and precision do not matter."""
    policy = written(
        "actions: {review: {must: [at most 7 % of traffic, recall at least 90 % for scam, recall at least 20 % for spam, "
        "precision at least 5 %]}}\nlabels: {scam: [review], spam: [review]}"
    )
    (line,) = infeasible(policy, traffic()).lines[1:]
    assert line.startswith("review: scam with recall at least 90 % is infeasible within share of traffic at most 7 %; feasible: ")
    assert "spam" not in line
    assert "precision" not in line


@given(st.lists(st.sets(st.sampled_from("abcdefg"), min_size=1), min_size=1))
def test_minimal_conflict_is_infeasible_and_minimal(causes: list[set[str]]) -> None:
    def unsatisfiable(kept: Sequence[object]) -> bool:
        return any(cause <= set(kept) for cause in causes)

    found = minimal_conflict("abcdefg", unsatisfiable).takers
    assert unsatisfiable(found)
    assert not any(unsatisfiable([other for other in found if other != each]) for each in found)


def test_compile_policy_reports_a_budget_smaller_than_the_labels_need(traffic: Make, written: Written) -> None:
    text = "actions: {review: {must: [at most %s of traffic, recall at least 90 %%]}}\nlabels: {scam: [review], spam: [review]}"
    found = infeasible(written(text % "3 %"), traffic())
    assert "is infeasible within share of traffic at most 3 %; feasible: share of traffic at most" in found.lines[1]
    enough = found.lines[1].split("feasible: share of traffic at most ")[1].split(",")[0]
    compiled(written(text % enough), traffic())


def test_compile_policy_reports_a_share_too_small_to_be_shown(traffic: Make, written: Written) -> None:
    text = "actions: {review: {must: [at most %s of traffic]}}\nlabels: {scam: [review]}"
    found = infeasible(written(text % "0.01 %"), traffic(2000))
    (nearest,) = found.problems[0].rules
    assert 0.001 < nearest.feasible_at < 0.004
    compiled(written(text % f"{100 * nearest.feasible_at:.4f} %"), traffic(2000))


def test_compile_policy_reports_an_action_without_items(written: Written, traffic: Make) -> None:
    table = traffic(2000)
    table = table.set_column(table.column_names.index("probability.scam"), "probability.scam", pa.array([np.float32(0.5)] * 2000))
    policy = written(
        "actions: {remove: {must: [precision at least 1 %]}, limit: {must: [precision at least 1 %]}}\n"
        "labels: {scam: [limit, remove]}"
    )
    found = infeasible(policy, table)
    assert found.lines[1] == "scam/limit: stricter actions leave no items, so it would never be used"


def test_compile_policy_reports_all_problems_at_once(traffic: Make, written: Written) -> None:
    policy = written(
        "actions: {remove: {must: [precision at least 99.9 %]}}\nlabels: {spam: [remove], scam: [remove], hate: [remove]}"
    )
    assert [problem.place for problem in infeasible(policy, traffic(1000)).problems] == [
        "spam/remove",
        "scam/remove",
        "hate/remove",
    ]


def test_compile_policy_reports_a_label_without_known_targets(traffic: Make, written: Written) -> None:
    found = infeasible(
        written("actions: {remove: {must: [precision at least 90 %]}}\nlabels: {spam: [remove]}"), traffic(500, unknown=1.1)
    )
    (nearest,) = found.problems[0].rules
    assert (nearest.bound, nearest.feasible_at, nearest.more) == (None, None, None)
    assert found.lines[1] == "spam/remove: precision at least 90 % cannot be shown at 95 % confidence"


def test_compile_policy_refuses_tables_that_do_not_fit(traffic: Make, written: Written) -> None:
    table = traffic(300)
    with pytest.raises(UserError, match="no predictions of hate; there are spam"):
        compile_policy(written(SIMPLE), table, ["spam", "scam"])
    by_region = written("actions: {remove: {must: [false-positive rate at most 1 % in every region]}}\nlabels: {spam: [remove]}")
    with pytest.raises(UserError, match="column region, which the policy names, is absent"):
        compile_policy(by_region, table, LABELS)
    with pytest.raises(UserError, match="no item of the predictions is in market fr"):
        compile_policy(written(SIMPLE + "markets: {fr: {labels: {hate: []}}}\n"), table, LABELS)
    with pytest.raises(UserError, match=r"column author, by which items belong together \(cluster\), is absent"):
        compile_policy(written(SIMPLE), table.drop_columns(["author"]), LABELS, cluster="author")


def test_compile_policy_notes_actions_on_mostly_unknown_items(traffic: Make, written: Written) -> None:
    """A label that is known for some sources only, and triggered most often in the others."""
    policy = written("presence: never\nactions: {remove: {must: [precision at least 85 %]}}\nlabels: {scam: [remove]}")
    table = traffic()
    assert not [name for name in compiled(policy, table).facts if name.startswith("note")]
    elsewhere = pa.table(
        {name: table.column(name) if "target" not in name else pa.nulls(8000, pa.float32()) for name in table.column_names}
    )
    high = pa.array(np.full(8000, 0.999, np.float32))
    elsewhere = elsewhere.set_column(table.column_names.index("probability.scam"), "probability.scam", high)
    elsewhere = elsewhere.set_column(0, "id", pa.array([f"elsewhere-{i}" for i in range(8000)]))
    everywhere = pa.concat_tables([table, elsewhere])
    first, note = [fact for name, fact in compiled(policy, everywhere, assume_random=True).facts.items() if "note" in name]
    assert first.startswith("guarantees hold for items like the labelled ones only; label scam: ")
    assert note.startswith("scam/remove: the target of ")
    assert " of the 8,740 affected items is known and of all items 35%;" in note


REVIEW = (
    "presence: never\nactions: {remove: {must: [precision at least 80 %]}, review: {must: [at most 8 % of traffic]}}\n"
    "labels: {scam: [review, remove], spam: [review]}"
)


def reviewed(table: pa.Table, by: str = "scam", labels: Sequence[str] = LABELS) -> pa.Table:
    """Keep the targets of items with a probability of at least 0.5, and of a fifth of the others; state the probabilities."""
    p = table.column(f"probability.{by}").to_numpy()
    inclusion = np.where(p >= 0.5, 1.0, 0.2)
    known = np.random.default_rng(99).random(len(p)) < inclusion
    for name in (f"target.{label}" for label in labels):
        target = np.where(known, table.column(name).to_numpy(zero_copy_only=False), np.nan)
        table = table.set_column(table.column_names.index(name), name, pa.array(target, from_pandas=True))
    return table.append_column("inclusion_probability", pa.array(inclusion))


def test_compile_policy_refuses_labels_that_depend_on_the_score(traffic: Make, written: Written) -> None:
    stated = reviewed(traffic(unknown=0))
    table = stated.drop_columns(["inclusion_probability"])
    with pytest.raises(UserError) as refused:
        compile_policy(written(REVIEW), table, LABELS)
    first, last = refused.value.lines
    assert first.startswith("policy test: label scam: the labelled items are not a random sample: 100 % of the items with")
    assert "add a column inclusion_probability" in last
    assert "--assume-random" in last
    assumed = compiled(written(REVIEW), table, assume_random=True)
    assert assumed.facts["note 1"].startswith("guarantees hold for items like the labelled ones only; label scam: ")
    # The stated probabilities fit, so nothing is noted.
    assert "note 1" not in compiled(written(REVIEW), stated).facts


def test_compile_policy_notes_inclusion_probabilities_that_do_not_fit(traffic: Make, written: Written) -> None:
    table = reviewed(traffic(unknown=0))
    place = table.column_names.index("inclusion_probability")
    wrong = table.set_column(place, "inclusion_probability", pa.array(np.full(table.num_rows, 0.25)))
    note = compiled(written(REVIEW), wrong).facts["note 1"]
    assert note.startswith("label scam: the labelled items were not chosen as inclusion_probability states: ")
    assert note.endswith("; the constraints hold if the probabilities are right")


def test_compile_policy_accepts_any_labels_where_no_constraint_needs_targets(traffic: Make, written: Written) -> None:
    """The labels of spam depend on its score, but only a share of traffic is promised for it."""
    table = reviewed(traffic(unknown=0), "spam", ["spam"]).drop_columns(["inclusion_probability"])
    assert not [name for name in compiled(written(REVIEW), table).facts if name.startswith("note")]


def test_compile_policy_with_equal_weights_is_that_without(traffic: Make, written: Written) -> None:
    text = """
    review: alongside
    actions:
      remove:
        must: [precision at least 80 %, false-positive rate at most 2 % in every language, overturned at most 1 % of traffic]
        appeals: {wrong: 0.5}
      review: {must: [at most 4 % of traffic in every language, recall at least 20 %]}
      limit: {must: [precision at least 10 %, expected miss rate at most 80 %]}
    labels: {scam: [limit, review, remove], spam: [review, remove]}
    """
    table = traffic(12_000, unknown=0)
    for cluster in (None, "author"):
        plain = compiled(written(text), table, cluster=cluster)
        for name, value in (("weight", 7.0), ("inclusion_probability", 0.25)):
            weighted = compiled(written(text), table.append_column(name, pa.array([value] * 12_000)), cluster=cluster)
            assert weighted.cells == plain.cells
            for one, other in zip(weighted.constraints, plain.constraints, strict=True):
                ends = [(shown.estimate, shown.bound, shown.high) for shown in (one, other)]
                assert ends[0] == pytest.approx(ends[1], rel=1e-6)


def test_compile_policy_counts_weighted_items(traffic: Make, written: Written) -> None:
    """Estimates are ratios of sums of weights, over the items that represent each other."""
    table = reviewed(traffic(12_000, unknown=0))
    weight = np.random.default_rng(1).choice([1.0, 3.0], 12_000)
    table = table.append_column("weight", pa.array(weight))
    found = compiled(written(REVIEW), table, assume_random=True)
    cut = found.thresholds()
    p, t = (table.column(f"{kind}.scam").to_numpy(zero_copy_only=False).astype(float) for kind in ("probability", "target"))
    label_weight = weight / table.column("inclusion_probability").to_numpy()
    hit = (p >= cut["scam"]["remove"]) & ~np.isnan(t)
    precision, share = found.constraints[0], found.constraints[-1]
    assert precision.estimate == pytest.approx((label_weight * t)[hit].sum() / label_weight[hit].sum())
    assert (precision.count, precision.rows) == (int(t[hit].sum()), int(hit.sum()))
    removed = p >= cut["scam"]["remove"]
    seen = (p >= cut["scam"]["review"]) | (table.column("probability.spam").to_numpy() >= cut["spam"]["review"])
    assert share.estimate == pytest.approx(weight[seen & ~removed].sum() / weight.sum())


def test_compile_policy_uses_strict_and_loose_tiers_of_one_rule(traffic: Make, written: Written) -> None:
    """Tiers are labels of one text each: what violates the loose one is removed, what only the strict one covers is limited."""
    table = traffic(8000, unknown=0.0, distance=4.0)
    tiers = {"scam": "insult_strict", "spam": "insult_loose"}
    table = table.rename_columns(
        [f"{k}.{tiers.get(v, v)}" if v else k for k, _, v in (n.partition(".") for n in table.column_names)]
    )
    policy = written(
        "actions: {limit: {must: [precision at least 80 %]}, remove: {must: [precision at least 95 %]}}\n"
        "labels: {insult_loose: [remove], insult_strict: [limit]}"
    )
    found = compile_policy(policy, table, ("insult_loose", "insult_strict", "hate"))
    assert isinstance(found, CompiledPolicy), found.lines
    rows = [[0.999, 0.999], [0.0, 0.999], [0.0, 0.0]]
    decisions = found.decide(rows, ("insult_loose", "insult_strict"), ["text"] * 3)
    assert [(d.action, [r.label for r in d.reasons][:1]) for d in decisions] == [
        ("remove", ["insult_loose"]),
        ("limit", ["insult_strict"]),
        ("allow", []),
    ]
