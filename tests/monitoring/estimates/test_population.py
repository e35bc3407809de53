from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from simulated_traffic import simulate_traffic

from vigil_data.errors import UserError
from vigil_monitoring.estimates import slicing
from vigil_monitoring.estimates.population import sum_traffic
from vigil_monitoring.traffic.reader import open_traffic


def test_sum_traffic_equals_a_loop_over_all_rows(tmp_path: Path) -> None:
    table, _ = simulate_traffic(3_000, 1, prevalence=0.1)
    # Row groups of different actions and languages, so that numbers of both grow while the traffic is read.
    order = np.argsort([f"{row}" for row in zip(table["action"].to_pylist(), table["language"].to_pylist(), strict=True)])
    pq.write_table(table.take(order), tmp_path / "a.parquet", row_group_size=500)
    found = sum_traffic(open_traffic(tmp_path / "a.parquet"), ("hate", "spam"), ("language", "decisive", "week"), reasons=True)
    rows = table.to_pylist()
    assert found.rows == 3_000
    for by, value in (("language", "de"), ("decisive", "spam"), ("", "all"), ("week", "2026-W45")):
        sums = found.sums[by]
        place = sums.codes.values.index(value)
        for action, name in enumerate(found.actions.values):
            inside = [
                row
                for row in rows
                if row["action"] == name
                and (by != "language" or row["language"] == value)
                and (by != "decisive" or (row["reasons"] and row["reasons"][0]["label"] == value))
                and (by != "week" or f"{row['time']:%G-W%V}" == value)
            ]
            for w, mass in enumerate((lambda row: 1.0, lambda row: row["exposure"])):
                expected = [
                    sum(map(mass, inside)),
                    *(sum(mass(row) * row[f"probability.{label}"] for row in inside) for label in ("hate", "spam")),
                    sum(mass(row) * max(row["probability.hate"], row["probability.spam"]) for row in inside),
                ]
                assert sums.by_action[w, place, action] == pytest.approx(expected)
                first = [row for row in inside if row["reasons"] and row["reasons"][0]["label"] == "spam"]
                assert sums.by_reason[w, place, action, 2] == pytest.approx(
                    [sum(map(mass, first)), sum(mass(row) * row["probability.spam"] for row in first)]
                )
        assert sums.reviews[place] == sum(
            row["review"]
            for row in rows
            if (by != "language" or row["language"] == value)
            and (by != "decisive" or (row["reasons"] and row["reasons"][0]["label"] == value))
            and (by != "week" or f"{row['time']:%G-W%V}" == value)
        )


def test_sum_traffic_refuses_too_many_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = simulate_traffic(300, 1)
    pq.write_table(table, tmp_path / "a.parquet")
    monkeypatch.setattr(slicing, "MAX_SLICES", 4)
    with pytest.raises(UserError, match="day has more than 4 values"):
        sum_traffic(open_traffic(tmp_path / "a.parquet"), ("hate",), ("day",))
