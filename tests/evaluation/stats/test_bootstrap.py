"""replicate: against the plain metrics, against scikit-learn with weights, and on other threads and chunks."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import chi2, poisson
from sklearn import metrics as peer

from vigil_evaluation import metrics
from vigil_evaluation.stats import bootstrap
from vigil_evaluation.stats.bootstrap import METRICS, UNBOUNDED, MetricParameters, Resampling, replicate, replicate_ratio
from vigil_evaluation.stats.bootstrap_kernels import LANES, draw

RATE, PRECISION, THRESHOLD = 0.3, 0.6, 0.4
PLAIN = {
    "average_precision": metrics.average_precision,
    "auroc": metrics.auroc,
    "partial_auroc": lambda t, p, w=None: metrics.partial_auroc(t, p, RATE, w),
    "recall_at_fpr": lambda t, p, w=None: metrics.recall_at_fpr(t, p, RATE, w),
    "recall_at_precision": lambda t, p, w=None: metrics.recall_at_precision(t, p, PRECISION, w),
    "f1": lambda t, p, w=None: metrics.decisions_at(t, p, THRESHOLD, w).f1,
    "precision": lambda t, p, w=None: metrics.decisions_at(t, p, THRESHOLD, w).precision,
    "recall": lambda t, p, w=None: metrics.decisions_at(t, p, THRESHOLD, w).recall,
    "false_positive_rate": lambda t, p, w=None: metrics.decisions_at(t, p, THRESHOLD, w).false_positive_rate,
    "accuracy": lambda t, p, w=None: metrics.decisions_at(t, p, THRESHOLD, w).accuracy,
    "brier": metrics.brier,
    "log_loss": metrics.log_loss,
    "calibration_error": lambda t, p, w=None: metrics.calibration_error(t, p, weights_N=w),
}


def points(labels: int) -> MetricParameters:
    return MetricParameters(RATE, PRECISION, np.full(labels, THRESHOLD))


def make(rows: int, labels: int, seed: int = 0, digits: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Targets, some unknown, and probabilities that often tie."""
    random = np.random.default_rng(seed)
    targets = random.choice([0.0, 0.2, 1.0, np.nan], (rows, labels), p=[0.4, 0.2, 0.3, 0.1])
    probabilities = np.clip(0.3 * (np.nan_to_num(targets) >= 0.5) + 0.7 * random.random((rows, labels)), 0, 1)
    return targets, np.round(probabilities, digits)


def weights(units: int, replicates: int, seed: int = 0) -> np.ndarray:
    """Weights of each replicate, ``[units, R]``."""
    blocks = []
    for block in range(-(-replicates // LANES)):
        blocks.append(np.empty((units, LANES), np.uint8))
        draw(seed, block, blocks[-1])
    return np.concatenate(blocks, axis=1)[:, :replicates]


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert set(one) == set(other)
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


@settings(deadline=None)
@given(
    arrays.arrays(float, (40, 2), elements=st.sampled_from([0.0, 0.5, 1.0, np.nan])),
    arrays.arrays(float, (40, 2), elements=st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.5, 0.9, 0.97, 1.0])),
    arrays.arrays(np.int32, (40,), elements=st.integers(-1, 2)),
    st.one_of(st.none(), arrays.arrays(float, (40,), elements=st.sampled_from([0.0, 0.5, 1.0, 7.5, 40.0]))),
    st.sampled_from([1, 3]),
)
def test_replicate_estimates_equal_the_plain_metrics(
    targets: Any, probabilities: Any, codes: Any, masses: Any, enough: int
) -> None:
    groups = [np.zeros(40, np.int32), (codes, 3)]
    found = replicate(targets, probabilities, groups, points(2), Resampling(0), weights_N=masses, enough=enough)
    each = np.ones(40) if masses is None else masses
    masks = [np.ones(40, bool), *(codes == value for value in range(3))]
    for group, mask in enumerate(masks):
        for label in range(2):
            counted = mask & (each > 0)
            t, p, w = targets[counted, label], probabilities[counted, label], each[counted]
            known, positive = int((~np.isnan(t)).sum()), int((t >= 0.5).sum())
            assert found.known_GL[group, label] == known
            assert found.positive_GL[group, label] == positive
            for name, metric in PLAIN.items():
                need = [metrics.effective_items(w[~np.isnan(t)])]
                need += [metrics.effective_items(w[t >= 0.5])] if name in bootstrap.NEEDS_POSITIVES else []
                need += [metrics.effective_items(w[t < 0.5])] if name in bootstrap.NEEDS_NEGATIVES else []
                expected = metric(t, p, None if masses is None else w) if min(need) >= enough - 1e-6 else None
                value = found.estimates[name][group, label]
                slack = 1e-12 if masses is None else 1e-9
                assert np.isnan(value) if expected is None else value == pytest.approx(expected, abs=slack), name


@pytest.mark.parametrize(
    ("digits", "clustered", "weighted_rows"), [(1, False, False), (9, True, False), (1, False, True), (9, True, True)]
)
def test_replicate_samples_equal_scikit_learn_with_weights(
    digits: int, clustered: bool, weighted_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "widen", lambda *_: None)
    targets, probabilities = make(150, 2, digits=digits)
    codes = np.random.default_rng(1).integers(-1, 3, 150).astype(np.int32)
    clusters = np.random.default_rng(2).integers(0, 40, 150).astype(np.int32) if clustered else None
    masses = np.random.default_rng(3).choice([0.0, 0.25, 1.0, 9.5], 150) if weighted_rows else None
    everything = [np.zeros(150, np.int32), codes]
    found = replicate(targets, probabilities, everything, points(2), Resampling(70, 5, clusters), weights_N=masses)
    drawn = weights(40 if clustered else 150, 70, 5)
    drawn = drawn[clusters] if clustered else drawn
    assert drawn.max() > 3
    drawn = drawn if masses is None else drawn * masses[:, None]
    compared = 0
    for group, mask in enumerate([np.ones(150, bool), *(codes == value for value in range(3))]):
        for label in range(2):
            kept = mask & ~np.isnan(targets[:, label])
            t, p = targets[kept, label], probabilities[kept, label]
            for r in range(70):
                expected = weighted(t, p, drawn[kept, r].astype(float))
                for name, value in expected.items():
                    assert found.samples[name][r, group, label] == pytest.approx(value, abs=3e-7, nan_ok=True), (name, r)
                    compared += not np.isnan(value)
    assert compared > (80 if weighted_rows else 250)


def weighted(targets: np.ndarray, scores: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """Metrics by scikit-learn with weights; NaN where one class has no weight."""
    targets, scores, weight = targets[weight > 0], scores[weight > 0], weight[weight > 0]
    positive, flagged = targets >= 0.5, scores >= THRESHOLD
    found = {
        "accuracy": peer.accuracy_score(positive, flagged, sample_weight=weight),
        "brier": float(np.average((targets - scores) ** 2, weights=weight)),
        "log_loss": float(np.average(metrics.log_losses(targets, scores), weights=weight)),
    }
    if positive.all() or not positive.any():
        ranked = ("average_precision", "auroc", "partial_auroc", "recall_at_fpr", "recall_at_precision", "f1", "precision")
        return found | dict.fromkeys(ranked, np.nan)
    rates, recalls, _ = peer.roc_curve(positive, scores, sample_weight=weight, drop_intermediate=False)
    precisions, at, _ = peer.precision_recall_curve(positive, scores, sample_weight=weight)
    return found | {
        "average_precision": peer.average_precision_score(positive, scores, sample_weight=weight),
        "auroc": peer.roc_auc_score(positive, scores, sample_weight=weight),
        "partial_auroc": peer.roc_auc_score(positive, scores, sample_weight=weight, max_fpr=RATE),
        "recall_at_fpr": recalls[rates <= RATE].max(),
        "recall_at_precision": at[:-1][precisions[:-1] >= PRECISION].max(initial=0),
        "f1": peer.f1_score(positive, flagged, sample_weight=weight, zero_division=0),
        "precision": peer.precision_score(positive, flagged, sample_weight=weight, zero_division=np.nan),
        "recall": peer.recall_score(positive, flagged, sample_weight=weight),
        "false_positive_rate": float(np.average(flagged[~positive], weights=weight[~positive])),
    }


def test_draw_weights_are_poisson_and_independent() -> None:
    drawn = weights(20_000, 128)
    counts = np.bincount(drawn.ravel(), minlength=13)
    expected = drawn.size * np.append(poisson.pmf(np.arange(8), 1), poisson.sf(7, 1))
    seen = np.append(counts[:8], counts[8:].sum())
    assert ((seen - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, 8)
    for axis in (0, 1):
        means, size = drawn.mean(axis=axis), drawn.shape[axis]
        assert ((means - 1) ** 2).sum() * size < chi2.ppf(0.9999, len(means))
    centred = (drawn[:2000] - 1.0) / np.sqrt(2000)
    between = centred.T @ centred - np.eye(128)
    assert np.abs(between).max() < 0.15, "replicates do not go together, those of one random number neither"
    centred = (drawn[:500] - 1.0) / np.sqrt(128)
    assert np.abs(centred @ centred.T - np.diag((centred**2).sum(axis=1))).max() < 0.6, "nor do units"
    assert not (weights(100, 64, 0) == weights(100, 64, 1)).all()


def test_replicate_samples_do_not_depend_on_other_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, probabilities = make(300, 3)
    random = np.random.default_rng(3)
    codes = [np.zeros(300, np.int32), random.integers(-1, 4, 300).astype(np.int32), random.integers(0, 2, 300).astype(np.int32)]
    resampling = Resampling(200, 9)
    full = replicate(targets, probabilities, codes, points(3), resampling)
    for threads, memory in ((1, bootstrap.MEMORY_BYTES), (3, bootstrap.MEMORY_BYTES), (2, 1)):
        monkeypatch.setattr(bootstrap, "_threads", lambda threads=threads: threads)
        monkeypatch.setattr(bootstrap, "MEMORY_BYTES", memory)
        same(full.samples, replicate(targets, probabilities, codes, points(3), resampling).samples)
    part = replicate(targets[:, 1:2], probabilities[:, 1:2], codes[1:2], points(1), resampling)
    same({name: values[:, 1:5, 1:2] for name, values in full.samples.items()}, part.samples)
    for name in METRICS:
        alone = replicate(targets, probabilities, codes, points(3), resampling, (name,))
        same({name: full.samples[name]}, alone.samples)
        same({name: full.estimates[name]}, alone.estimates)
    fewer = replicate(targets, probabilities, codes, points(3), Resampling(70, 9), set(METRICS) - {"calibration_error"})
    same({name: full.samples[name][:70] for name in fewer.samples}, fewer.samples)
    other = replicate(targets, probabilities, codes, points(3), Resampling(200, 10), ("auroc",))
    assert (other.samples["auroc"] != full.samples["auroc"]).mean() > 0.9


def test_replicate_ignores_unknown_targets() -> None:
    targets, probabilities = make(200, 1)
    unknown = np.isnan(targets[:, 0])
    noise = np.where(unknown[:, None], np.nan, probabilities)
    masked = replicate(targets, noise, [np.zeros(200, np.int32)], points(1), Resampling(100))
    rows = np.flatnonzero(~unknown).astype(np.int32)
    dropped = replicate(
        targets[~unknown], probabilities[~unknown], [np.zeros(len(rows), np.int32)], points(1), Resampling(100, 0, rows)
    )
    for name in METRICS:
        np.testing.assert_allclose(masked.estimates[name], dropped.estimates[name], atol=1e-12)
        if name in UNBOUNDED or name == "auroc":
            np.testing.assert_allclose(masked.samples[name], dropped.samples[name], atol=1e-6)


def test_replicate_ratio_of_weighted_sums() -> None:
    random = np.random.default_rng(4)
    above, below = random.normal(size=(120, 3)), random.random((120, 3))
    above[random.random((120, 3)) < 0.2] = np.nan
    below[:, 2] = 0
    codes = random.integers(-1, 3, 120).astype(np.int32)
    clusters = random.integers(0, 50, 120).astype(np.int32)
    estimates, samples = replicate_ratio(above, below, [codes, (np.full(120, -1, np.int32), 2)], Resampling(80, 2, clusters))
    drawn = weights(50, 80, 2)[clusters].astype(float)
    assert estimates.shape == (5, 3)
    assert samples.shape == (80, 5, 3)
    assert np.isnan(estimates[3:]).all()
    assert np.isnan(samples[:, :, 2]).all()
    for group in range(3):
        rows = codes == group
        filled = np.nan_to_num(above)
        expected = filled[rows, :2].sum(axis=0) / below[rows, :2].sum(axis=0)
        np.testing.assert_allclose(estimates[group, :2], expected, rtol=1e-12)
        expected = (drawn[rows].T @ filled[rows, :2]) / (drawn[rows].T @ below[rows, :2])
        np.testing.assert_allclose(samples[:, group, :2], expected, rtol=2e-5, atol=1e-6)


def test_replicate_with_equal_weights_equals_that_without() -> None:
    targets, probabilities = make(300, 2)
    codes = [np.random.default_rng(3).integers(-1, 4, 300).astype(np.int32)]
    plain = replicate(targets, probabilities, codes, points(2), Resampling(70))
    equal = replicate(targets, probabilities, codes, points(2), Resampling(70), weights_N=np.full(300, 0.1))
    for name in METRICS:
        np.testing.assert_allclose(equal.estimates[name], plain.estimates[name], atol=1e-12)
        np.testing.assert_allclose(equal.samples[name], plain.samples[name], atol=1e-6)
    assert (equal.calibrated_GL >= plain.calibrated_GL).all(), "a stricter level rejects calibration less often"


def test_replicate_ratio_of_weighted_rows_equals_a_loop() -> None:
    random = np.random.default_rng(5)
    above, below, masses = random.random((120, 2)), 1 + random.random((120, 2)), random.choice([0.0, 1.0, 20.0], 120)
    codes = random.integers(-1, 3, 120).astype(np.int32)
    estimates, samples = replicate_ratio(above, below, [codes], Resampling(80, 2), masses)
    drawn = weights(120, 80, 2) * masses[:, None]
    for group in range(3):
        rows = codes == group
        expected = (masses[rows] @ above[rows]) / (masses[rows] @ below[rows])
        np.testing.assert_allclose(estimates[group], expected, rtol=1e-12)
        expected = (drawn[rows].T @ above[rows]) / (drawn[rows].T @ below[rows])
        np.testing.assert_allclose(samples[:, group], expected, rtol=2e-5)


def test_widen_counts_what_was_not_seen_by_its_weight() -> None:
    # 60 positives, all with a high probability and all reviewed; of the rest, a tenth.
    targets = np.array([1.0] * 60 + [0.0] * 40 + [0.0] * 100)[:, None]
    probabilities = np.array([0.9] * 100 + [0.1] * 100)[:, None]
    masses = np.array([1.0] * 100 + [10.0] * 100)
    found = replicate(targets, probabilities, [np.zeros(200, np.int32)], points(1), Resampling(4000), weights_N=masses)
    assert found.estimates["recall"][0, 0] == 1
    farthest = np.quantile(1 - found.samples["recall"][:, 0, 0], 0.975)
    # One missed positive would weigh 10, as 6 positives of the same weight: Beta(6 + 1/2, 1/2).
    assert farthest == pytest.approx(0.331, rel=0.12)
    shares, samples = replicate_ratio(targets, targets, [np.zeros(200, np.int32)], Resampling(4000), masses)
    assert shares[0, 0] == 1
    # By itself, a ratio knows only the weights of its own rows: 60 equal ones.
    assert np.quantile(1 - samples[:, 0, 0], 0.975) == pytest.approx(0.041, rel=0.12)


@pytest.mark.parametrize("clustered", [False, True])
def test_widen_spreads_shares_of_0_and_1(clustered: bool) -> None:
    targets, probabilities = np.repeat([1.0, 0.0], 20)[:, None], np.repeat([0.9, 0.1], 20)[:, None]
    clusters = np.repeat(np.arange(10), 4).astype(np.int32) if clustered else None
    found = replicate(targets, probabilities, [np.zeros(40, np.int32)], points(1), Resampling(4000, 0, clusters))
    for name in set(METRICS) - {*UNBOUNDED}:
        value = 0.0 if name == "false_positive_rate" else 1.0
        assert found.estimates[name][0, 0] == value
        items = 40 if name == "accuracy" else 20
        units = items // 4 if clustered else items
        farthest = np.quantile(np.abs(found.samples[name][:, 0, 0] - value), 0.975)
        # The lower end of Jeffreys' interval of n out of n: Beta(n + 1/2, 1/2).
        jeffreys = {5: 0.379, 10: 0.217, 20: 0.117, 40: 0.0607}[units]
        assert farthest == pytest.approx(jeffreys, rel=0.12), name
    hits, known = (targets == (probabilities > 0.5)).astype(float), np.ones((40, 1))
    shares, samples = replicate_ratio(hits, known, [np.zeros(40, np.int32)], Resampling(4000, 0, clusters))
    np.testing.assert_array_equal(samples[:, 0, 0], found.samples["accuracy"][:, 0, 0])
    assert shares[0, 0] == 1
    _, samples = replicate_ratio(2 * known, known, [np.zeros(40, np.int32)], Resampling(100))
    assert (samples == 2).all(), "what is not a share is left alone"


def test_replicate_of_empty_tables_and_groups() -> None:
    nothing = replicate(np.empty((0, 2)), np.empty((0, 2)), [(np.empty(0, np.int32), 3)], points(2), Resampling(10))
    assert nothing.samples["auroc"].shape == (10, 3, 2)
    unknown = replicate(np.full((5, 1), np.nan), np.full((5, 1), np.nan), [np.zeros(5, np.int32)], points(1), Resampling(10))
    for found in (nothing, unknown):
        assert all(np.isnan(values).all() for values in (*found.estimates.values(), *found.samples.values()))
        assert not found.known_GL.any()


def test_replicate_refuses_inputs_that_do_not_fit() -> None:
    targets, probabilities = make(20, 2)
    everything = [np.zeros(20, np.int32)]
    with pytest.raises(ValueError, match="thresholds 1"):
        replicate(targets, probabilities, everything, points(1), Resampling(1))
    with pytest.raises(ValueError, match="no such metric: gini"):
        replicate(targets, probabilities, everything, points(2), Resampling(1), ("gini",))
    with pytest.raises(ValueError, match="do not fit 20 rows"):
        replicate(targets, probabilities, [np.zeros(19, np.int32)], points(2), Resampling(1))
    with pytest.raises(ValueError, match="do not fit 20 rows and 1 groups"):
        replicate(targets, probabilities, [(np.full(20, 1, np.int32), 1)], points(2), Resampling(1))
    with pytest.raises(ValueError, match="the unit of each of the 20 rows"):
        replicate(targets, probabilities, everything, points(2), Resampling(1, 0, np.full(20, -1, np.int32)))
    with pytest.raises(ValueError, match=r"weights .* must be 20 finite numbers"):
        replicate(targets, probabilities, everything, points(2), Resampling(1), weights_N=np.full(20, -1.0))
    with pytest.raises(ValueError, match="are NaN"):
        replicate(np.zeros((20, 2)), np.full((20, 2), np.nan), everything, points(2), Resampling(1))


SCRIPT = """
import sys, numpy as np
import vigil_evaluation.stats.bootstrap as b
assert "numba" not in sys.modules and "scipy" not in sys.modules, "heavy imports wait until they are needed"
t = np.tile([0.0, 1.0], 20)[:, None]
parameters = b.MetricParameters(0.1, 0.9, np.array([0.5]))
found = b.replicate(t, t * 0.5 + 0.2, [np.zeros(40, np.int32)], parameters, b.Resampling(8), ("brier",))
assert found.samples["brier"].shape == (8, 1, 1)
"""


def test_bootstrap_import_is_light_and_works_without_a_writable_cache(tmp_path: Path, repository: Path) -> None:
    if os.geteuid() == 0:
        # The superuser may write anywhere: a file where the folders of caches should be stops even him.
        (tmp_path / "package").mkdir()
        source = tmp_path / "package" / "vigil_evaluation"
        source.symlink_to(repository / "evaluation" / "vigil_evaluation")
    (tmp_path / "home").write_text("not a folder")
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home")}
    environment["NUMBA_CACHE_DIR"] = str(tmp_path / "home" / "cache")
    subprocess.run([sys.executable, "-c", SCRIPT], env=environment, check=True, timeout=120)
