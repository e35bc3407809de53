"""Replay of two policies or models, compared with decisions item by item."""

import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from vigil_data.errors import UserError
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_evaluation.policy.replay import ReplaySide, mean_interval, replay

Make = Callable[..., pa.Table]


def f(value: float) -> float:
    return float(np.float32(value))


def policy(name: str, review: str, **cuts: dict[str, float]) -> CompiledPolicy:
    cells = {(None, None): {label: {action: f(cut) for action, cut in by.items()} for label, by in cuts.items()}}
    return CompiledPolicy(name, 1, ("allow", "limit", "review", "remove"), tuple(cuts), review, cells, {"review": 0.4})


OLD = policy("old", "before", spam={"review": 0.6, "remove": 0.9}, scam={"review": 0.7, "remove": 0.95})
NEW = policy("new", "alongside", scam={"limit": 0.4, "review": 0.5, "remove": 0.9}, spam={"review": 0.7, "remove": 0.85})


def verdicts(policy: CompiledPolicy, table: pa.Table) -> list:
    p = np.stack([table.column(f"probability.{label}").to_numpy() for label in policy.labels], axis=1)
    return policy.decide(p, policy.labels, table.column("presence").to_pylist(), table.column("market").to_pylist())


def test_replay_of_two_policies_on_the_same_items(traffic: Make) -> None:
    table = traffic(4000, seed=3)
    found, changes = replay(ReplaySide("old", OLD, table), ReplaySide("new", NEW, table), columns=["language"], cluster="author")
    before, after = verdicts(OLD, table), verdicts(NEW, table)
    differs = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if (a.action, a.review) != (b.action, b.review)]
    assert found.changed == len(differs) == changes.num_rows
    assert changes.column("id").to_pylist() == [table.column("id")[i].as_py() for i in differs]
    assert changes.column("after").to_pylist() == [after[i].action for i in differs]
    assert changes.column("before.review").to_pylist() == [before[i].review for i in differs]
    reasons = changes.column("after.reasons").to_pylist()
    assert [[r["label"] for r in told] for told in reasons] == [[r.label for r in after[i].reasons] for i in differs]

    def named(verdict) -> str:
        return verdict.action + (" + review" if verdict.review and verdict.action != "review" else "")

    counts = Counter((named(a), named(b)) for a, b in zip(before, after, strict=True))
    for i, row in enumerate(found.outcomes):
        for j, column in enumerate(found.outcomes):
            assert found.transitions[i][j] == counts[row, column]
    order = ("allow", "limit", "review", "remove")
    stricter = [i for i in differs if order.index(after[i].action) > order.index(before[i].action)]
    milder = [i for i in differs if order.index(after[i].action) < order.index(before[i].action)]
    assert (found.stricter, found.milder) == (len(stricter), len(milder))
    right = wrong = 0
    for rows, of in ((stricter, after), (milder, before)):
        for i in rows:
            told = next(reason for reason in of[i].reasons if reason.action == of[i].action)
            target = table.column(f"target.{told.label}")[i].as_py()
            good = target == 1 if rows is stricter else target == 0
            right += target is not None and good
            wrong += target is not None and not good
    everything = found.verdicts[0]
    assert (everything.wins, everything.losses, everything.unknown) == (right, wrong, len(stricter) + len(milder) - right - wrong)
    assert everything.wins == sum(verdict.wins for verdict in found.verdicts[1:])
    assert changes.column("right").to_pylist().count(True) == right
    for volume in found.volumes:
        hit = [
            sum(v.review if volume.action == "review" else v.action == volume.action for v in side) for side in (before, after)
        ]
        assert [volume.before, volume.after] == hit
        assert volume.difference == pytest.approx((hit[1] - hit[0]) / 4000)
        assert volume.interval.low <= volume.difference <= volume.interval.high
    authors = table.column("author").to_pylist()
    assert found.units == len({authors[i] for i in differs})
    assert found.before.cost == pytest.approx(0.4 * sum(verdict.review for verdict in before))
    languages = {a.value: a for a in found.affected if a.column == "language"}
    assert sum(a.changed for a in languages.values()) == found.changed
    assert languages["en"].items == table.column("language").to_pylist().count("en")
    assert set(changes.column_names) >= {"language", "presence", "market", "change"}
    json.dumps(found.to_dict(), allow_nan=False)


def test_replay_of_two_models_on_their_common_items(traffic: Make) -> None:
    first = traffic(1000, seed=1)
    better = traffic(1000, seed=1, distance=4.0)
    second = better.take(np.random.default_rng(0).permutation(900))
    found, changes = replay(ReplaySide("a", OLD, first), ReplaySide("b", OLD, second))
    assert (found.items, found.left_out) == (900, 100)
    aligned, _ = replay(ReplaySide("a", OLD, first.slice(0, 900)), ReplaySide("b", OLD, better.slice(0, 900)))
    assert found.transitions == aligned.transitions
    assert changes.num_rows == found.changed > 0
    assert found.units is None


def test_replay_of_a_policy_against_itself_changes_nothing(traffic: Make) -> None:
    table = traffic(500)
    found, changes = replay(ReplaySide("a", OLD, table), ReplaySide("b", OLD, table))
    assert (found.changed, found.share, changes.num_rows) == (0, 0.0, 0)
    assert found.verdicts[0].wins == found.verdicts[0].losses == 0
    assert all(volume.difference == 0 for volume in found.volumes)


def test_replay_without_targets_gives_volumes_and_no_verdicts(traffic: Make) -> None:
    table = traffic(2000, seed=3)
    bare = table.drop_columns([name for name in table.column_names if name.startswith("target.")])
    found, changes = replay(ReplaySide("old", OLD, bare), ReplaySide("new", NEW, bare))
    known, _ = replay(ReplaySide("old", OLD, table), ReplaySide("new", NEW, table))
    assert (found.changed, found.volumes, found.transitions) == (known.changed, known.volumes, known.transitions)
    assert found.verdicts[0].wins == found.verdicts[0].losses == 0
    assert found.verdicts[0].unknown == found.stricter + found.milder > 0
    assert set(changes.column("right").to_pylist()) == {None}
    json.dumps(found.to_dict(), allow_nan=False)


def test_replay_counts_rows_by_their_weights(traffic: Make) -> None:
    table = traffic(1000, seed=3)
    weight = np.random.default_rng(0).integers(1, 4, 1000)
    found, _ = replay(*(ReplaySide(p.name, p, table.append_column("weight", pa.array(weight))) for p in (OLD, NEW)))
    rows = np.repeat(np.arange(1000), weight)
    repeated = table.take(rows).set_column(0, "id", pa.array([str(i) for i in range(len(rows))]))
    wanted, _ = replay(ReplaySide("old", OLD, repeated), ReplaySide("new", NEW, repeated))
    assert found.share == pytest.approx(wanted.share)
    assert [volume.difference for volume in found.volumes] == pytest.approx([volume.difference for volume in wanted.volumes])
    # Copies are not further items, so the interval is wider.
    assert found.interval.low < wanted.interval.low


def test_replay_refuses_sides_that_do_not_fit(traffic: Make) -> None:
    table = traffic(100)
    other = table.set_column(0, "id", pa.array([f"other-{i}" for i in range(100)]))
    with pytest.raises(UserError, match="the two sides have no item in common"):
        replay(ReplaySide("a", OLD, table), ReplaySide("b", OLD, other))
    with pytest.raises(UserError, match="a: column region is absent"):
        replay(ReplaySide("a", OLD, table), ReplaySide("b", OLD, table), columns=["region"])


@pytest.mark.prove
def test_mean_interval_covers_a_difference_of_clustered_items(proofs) -> None:
    """Items of an author are drawn together, and resampled together by the interval."""
    repetitions = proofs(400, 4000)
    random = np.random.default_rng(0)
    units = np.repeat(np.arange(300), 4).astype(np.int32)
    covered, naive = 0, 0
    for _ in range(repetitions):
        values = (random.random(300) < 0.3)[units].astype(float) * random.choice([-1.0, 1.0, 1.0], len(units))
        truth = 0.3 / 3
        interval, alone = mean_interval(values, units, 0.95), mean_interval(values, None, 0.95)
        covered += interval.low <= truth <= interval.high
        naive += alone.low <= truth <= alone.high
    print(f"covered in {covered / repetitions:.1%} of {repetitions}; items on their own in {naive / repetitions:.1%}")
    assert 0.93 - 3 * (0.05 * 0.95 / repetitions) ** 0.5 <= covered / repetitions <= 0.97 + 3 * (0.05 * 0.95 / repetitions) ** 0.5
    assert mean_interval(np.ones(1), None, 0.95) is None
