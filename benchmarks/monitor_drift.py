"""Drift of a day of traffic: time and memory of its summary, of the tests, and of the next look.

usage: python benchmarks/monitor_drift.py [--rows 200000] [--days 2] [--folder DIR]

The log has the columns that `vigil serve --log` writes and two labels; slices are by language and content type. Each line is a
process of its own, so that its peak memory is its own; reading the same columns once is the yardstick of the same run. The first
look summarizes all days, the next one only the newest. CPU seconds count where the machine is busy.

Last table (--rows 10000000; AMD EPYC, 2 virtual cores, one thread, machine busy with ten other processes, so that only CPU
seconds mean anything; memory with --rows 2000000):

    step                                   decisions   seconds     CPU s  peak MiB
    read the same columns, all days       20,000,000      59.3       3.7       261
    first look, all days                  20,000,000     130.5       7.5       262
    next look, one new day                10,000,000      44.0       4.1       263
    tests of 365 days, 200 streams                 0      34.6       3.2       209
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

import pyarrow.parquet as pq

REPOSITORY = Path(__file__).resolve().parent.parent
PART_ROWS = 200_000
START, LABELS, BY = date(2026, 11, 1), ("hate", "spam"), ("language", "content_type")
TITLES = {
    "read": "read the same columns, all days",
    "first": "first look, all days",
    "next": "next look, one new day",
    "year": "tests of 365 days, 200 streams",
}


def main() -> None:
    """Print the table, or do one step in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000, help="decisions of a day, a multiple of 200,000 (or fewer)")
    parser.add_argument("--days", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the log is written (default: a temporary folder)")
    parser.add_argument("--step", choices=list(TITLES))
    given = parser.parse_args()
    if given.step:
        step(given.step, given.folder, given.days)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary) / "traffic"
        write_log(folder, given.rows, given.days)
        shutil.rmtree(folder / ".drift", ignore_errors=True)
        print(f"{'step':36}{'decisions':>12}{'seconds':>10}{'CPU s':>10}{'peak MiB':>10}", flush=True)
        for name, title in TITLES.items():
            if name == "next":
                for file in (folder / ".drift").glob(f"{START + timedelta(days=given.days - 1)}*"):
                    file.unlink()
            command = [sys.executable, __file__, "--step", name, "--folder", str(folder), "--days", str(given.days)]
            seconds, cpu, peak = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
            rows = {"next": given.rows, "year": 0}.get(name, given.rows * given.days)
            print(f"{title:36}{rows:>12,}{seconds:>10.1f}{cpu:>10.1f}{peak:>10.0f}", flush=True)


def step(name: str, folder: Path, days: int) -> None:
    """Print the seconds of a step and the peak memory of this process."""
    import numpy as np

    from vigil_monitoring.drift import DriftSettings, find_drift
    from vigil_monitoring.drift.references import open_reference
    from vigil_monitoring.sequential.e_process import shift_evidence
    from vigil_monitoring.traffic import open_traffic

    start, cpu = time.perf_counter(), time.process_time()
    if name == "year":
        values = np.random.default_rng(0).normal(size=(28 + 365, 200))
        shift_evidence(values, 28, group_N=np.arange(len(values)) % 7)
    else:
        traffic = open_traffic(folder)
        columns = ["action", "presence", "error", "language", "content_type", "market", *(f"probability.{x}" for x in LABELS)]
        if name == "read":
            assert sum(batch.num_rows for batch in traffic.batches(columns)) == traffic.rows
        else:
            last = START + timedelta(days=days - 1)
            source = open_reference(f"{START}..{last - timedelta(days=1)}", folder)
            found = find_drift(traffic, source, DriftSettings(by=BY), end=last, cache=folder / ".drift")
            assert found.items == [traffic.rows_by_day[last]]
    # ru_maxrss would count the memory of the process that started this one.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(time.perf_counter() - start, time.process_time() - cpu, int(peak.split()[1]) / 1024)


def write_log(folder: Path, rows: int, days: int) -> None:
    """Write a simulated part of each day as often as it takes; ids do not matter here."""
    sys.path.insert(0, str(REPOSITORY / "tests" / "support"))
    from simulated_traffic import simulate_traffic

    from vigil_data.filesystem import link_or_copy

    if folder.exists():
        return
    for day in range(days):
        at = folder / f"day={START + timedelta(days=day)}"
        at.mkdir(parents=True)
        table, _ = simulate_traffic(min(rows, PART_ROWS), day, days=1, start=START + timedelta(days=day), labels=LABELS)
        pq.write_table(table, at / "part-00000.parquet")
        for part in range(1, rows // PART_ROWS):
            link_or_copy(at / "part-00000.parquet", at / f"part-{part:05d}.parquet")


if __name__ == "__main__":
    main()
