"""summarize against counts by numpy, and its cache."""

from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulated_traffic import days_of, simulate_traffic

from vigil_data.errors import UserError
from vigil_monitoring.drift import embeddings, summaries
from vigil_monitoring.drift.embeddings import FEATURES, random_features
from vigil_monitoring.drift.summaries import ALL, DaySummary, summarize, summary_plan
from vigil_monitoring.drift.windows import merged
from vigil_monitoring.traffic import open_traffic

START = date(2026, 9, 7)


@pytest.fixture(scope="module")
def table():
    """Two days with embeddings, errors and missing values."""
    table, _ = simulate_traffic(3000, 5, days=2, start=START, prevalence=0.1)
    random = np.random.default_rng(1)
    failed = random.random(3000) < 0.01
    for label in ("hate", "spam"):
        place = table.column_names.index(f"probability.{label}")
        table = table.set_column(place, f"probability.{label}", pa.array(table[place].to_numpy(), pa.float32(), mask=failed))
    error = pa.array(["decode" if each else None for each in failed])
    table = table.set_column(table.column_names.index("error"), "error", error)
    language = pa.array([None if n % 100 == 0 else name for n, name in enumerate(table["language"].to_pylist())])
    table = table.set_column(table.column_names.index("language"), "language", language)
    vectors = [None if n % 10 == 0 else row for n, row in enumerate(random.normal(size=(3000, 5)).tolist())]
    return table.append_column("embedding", pa.array(vectors, pa.list_(pa.float32())))


def expected(table, column, value, label, edges):
    rows = table.to_pylist()
    kept = [row for row in rows if column is None or (row[column] or "unknown") == value]
    p = np.array([np.nan if row[f"probability.{label}"] is None else row[f"probability.{label}"] for row in kept], np.float32)
    counts = [
        int(((p >= np.float32(low)) & (p < np.float32(high))).sum()) for low, high in zip((-1, *edges), (*edges, 2), strict=True)
    ]
    return len(kept), counts, float(np.nansum(p, dtype=np.float64))


def test_summarize_counts_by_label_slice_and_category(table, tmp_path):
    pq.write_table(table, tmp_path / "a.parquet")
    plan = summary_plan(["hate", "spam"], ("language",), {"spam": [0.123]})
    assert 0.123 in plan.edges["spam"]
    assert 0.123 not in plan.edges["hate"]
    days = [START, START + timedelta(days=1), START + timedelta(days=2)]
    found = summarize(open_traffic(tmp_path / "a.parquet"), plan, days)
    assert found[days[2]] == DaySummary()
    for day, rows in days_of(table).items():
        summary = found[day]
        assert summary.items == rows.num_rows
        assert summary.errors == rows.num_rows - rows["error"].null_count
        assert set(summary.slices) == {ALL, *(f"language={name}" for name in ("en", "de", "ar", "unknown"))}
        for name in (ALL, "language=de", "language=unknown"):
            column, value = (None, None) if name == ALL else name.split("=")
            for label in ("hate", "spam"):
                items, counts, total = expected(rows, column, value, label, plan.edges[label])
                assert summary.slices[name].items == items
                assert summary.slices[name].counts[label] == counts
                assert sum(summary.slices[name].sums[label]) == pytest.approx(total, rel=1e-5)
        actions = rows["action"].to_pylist()
        assert summary.slices[ALL].categories["action"] == {name: actions.count(name) for name in set(actions)}
        assert summary.mixes["content_type"]["post"] == rows["content_type"].to_pylist().count("post")
        vectors = np.array([row for row in rows["embedding"].to_pylist() if row is not None])
        assert summary.features.items == len(vectors)
        assert summary.features.sums == pytest.approx(random_features(vectors).sum(axis=0).tolist(), rel=1e-4, abs=1e-3)
    assert merged([found[day] for day in days]).items == table.num_rows


def test_summarize_reads_evenly_spread_embeddings_of_large_days(table, tmp_path, monkeypatch):
    pq.write_table(table, tmp_path / "a.parquet")
    monkeypatch.setattr(summaries, "MOST_EMBEDDINGS", 300)
    found = summarize(open_traffic(tmp_path / "a.parquet"), summary_plan(["hate"], ()), [START])
    rows = days_of(table)[START]
    every = -(-rows.num_rows // 300)
    vectors = np.array([row for row in rows["embedding"].to_pylist()[::every] if row is not None])
    assert found[START].features.items == len(vectors) <= 300
    assert found[START].features.sums == pytest.approx(random_features(vectors).sum(axis=0).tolist(), rel=1e-4, abs=1e-3)


def test_random_features_approximate_a_gaussian_kernel():
    random = np.random.default_rng(2)
    vectors = random.normal(size=(40, 16))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    kernel = np.exp(-((unit[:, None] - unit[None]) ** 2).sum(-1) / 2)
    features = random_features(vectors)
    assert features.shape == (40, FEATURES)
    assert np.abs(features @ features.T / FEATURES - kernel).mean() < 0.12


def test_embeddings_of_rejects_other_types_and_lengths():
    with pytest.raises(UserError, match="must hold lists of numbers, not string"):
        embeddings.embeddings_of(pa.array(["a"]))
    with pytest.raises(UserError, match="different lengths"):
        embeddings.embeddings_of(pa.array([[1.0], [1.0, 2.0]]))
    fixed = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    assert embeddings.embeddings_of(fixed).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert embeddings.embeddings_of(pa.array([None], pa.list_(pa.float32()))).shape == (0, 0)


@pytest.fixture
def log(table, tmp_path):
    """A traffic log of the two days, complete."""
    for day, rows in days_of(table).items():
        folder = tmp_path / "log" / f"day={day}"
        folder.mkdir(parents=True)
        pq.write_table(rows.drop_columns(["embedding"]), folder / "part-1.parquet")
    return tmp_path / "log"


def reads(monkeypatch):
    """Rows that batches of traffic hold from now on."""
    counted = []
    original = summaries._DayCounter.add

    def add(self, batch):
        counted.append(batch.num_rows)
        original(self, batch)

    monkeypatch.setattr(summaries._DayCounter, "add", add)
    return counted


def test_summarize_reads_only_new_and_changed_days_of_a_log(log, tmp_path, monkeypatch):
    plan, days = summary_plan(["hate"], ("language",)), [START, START + timedelta(days=1)]
    cache, counted = tmp_path / "cache", reads(monkeypatch)
    first = summarize(open_traffic(log), plan, days, cache=cache)
    assert sum(counted) == 3000
    assert summarize(open_traffic(log), plan, days, cache=cache) == first
    assert sum(counted) == 3000
    # Rows of the second day are erased: it is read again, the first is not.
    part = log / f"day={days[1]}" / "part-1.parquet"
    kept = pq.read_table(part, partitioning=None).slice(100)
    pq.write_table(kept, part)
    second = summarize(open_traffic(log), plan, days, cache=cache)
    assert sum(counted) == 3000 + kept.num_rows
    assert second[days[0]] == first[days[0]]
    assert second[days[1]].items == kept.num_rows
    # Another plan, and a damaged summary, are not taken for these.
    summarize(open_traffic(log), summary_plan(["hate"], ()), days, cache=cache)
    assert sum(counted) == 2 * (3000 + kept.num_rows) - 3000 + first[days[0]].items
    [file] = cache.glob(f"{days[0]}*.json")
    file.write_text("{")
    assert summarize(open_traffic(log), plan, days, cache=cache) == second
    assert not [name for name in cache.iterdir() if b"item-" in name.read_bytes()], "summaries hold no ids"


def test_summarize_does_not_keep_a_day_that_is_still_written(log, tmp_path):
    folder = log / f"day={START}"
    with pa.OSFile(str(folder / "_part-2.arrows"), "wb") as file:
        rows = pq.read_table(folder / "part-1.parquet", partitioning=None).slice(0, 5)
        writer = pa.ipc.new_stream(file, rows.schema)
        writer.write_table(rows)
        writer.close()
    days = [START, START + timedelta(days=1)]
    found = summarize(open_traffic(log), summary_plan(["hate"], ()), days, cache=tmp_path / "cache")
    assert sum(day.items for day in found.values()) == 3005
    assert [file.name[:10] for file in (tmp_path / "cache").iterdir()] == [days[1].isoformat()]


def test_summarize_does_without_a_cache_that_cannot_be_written(log, tmp_path):
    (tmp_path / "file").write_text("")
    found = summarize(open_traffic(log), summary_plan(["hate"], ()), [START], cache=tmp_path / "file" / "cache")
    assert found[START].items > 0
