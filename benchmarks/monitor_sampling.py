"""Drawing a review queue from a traffic log: time and memory of the draw, by the number of decisions.

usage: python benchmarks/monitor_sampling.py [--rows 200000] [--budget 500] [--folder DIR]

The log has the columns that `vigil serve --log` writes, two labels, and 500,000 rows in a file. The design is `online-metrics`
(prevalence, precision and recall by language, spread over authors). Each line is a process of its own, so that its peak memory is
its own; reading all columns once is the yardstick of the same run. CPU seconds count where the machine is busy.

Last table (AMD EPYC, 2 virtual cores, one thread, machine busy):

    step                                   decisions   seconds     CPU s  peak MiB
    read all columns once                 10,000,000      38.1       4.9       489
    sample of 500                         10,000,000     183.0      22.8       630
    half-widths of four budgets           10,000,000     315.6      22.3       489
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).resolve().parent.parent
PART_ROWS = 500_000


def main() -> None:
    """Print the table, or do one step in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--budget", type=int, default=500)
    parser.add_argument("--folder", type=Path, help="where the log is written (default: a temporary folder)")
    parser.add_argument("--step", choices=["read", "sample", "power"])
    given = parser.parse_args()
    if given.step:
        step(given.step, given.folder, given.budget)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary) / "traffic"
        write_log(folder, given.rows)
        print(f"{'step':36}{'decisions':>12}{'seconds':>10}{'CPU s':>10}{'peak MiB':>10}", flush=True)
        for name in ("read", "sample", "power"):
            command = [sys.executable, __file__, "--step", name, "--folder", str(folder), "--budget", str(given.budget)]
            seconds, cpu, peak = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
            titles = {
                "read": "read all columns once",
                "sample": f"sample of {given.budget}",
                "power": "half-widths of four budgets",
            }
            print(f"{titles[name]:36}{given.rows:>12,}{seconds:>10.1f}{cpu:>10.1f}{peak:>10.0f}", flush=True)


def step(name: str, folder: Path, budget: int) -> None:
    """Print the seconds of a step and the peak memory of this process."""
    from vigil_monitoring.sampling.design import read_design
    from vigil_monitoring.sampling.draw import draw, expected_precision
    from vigil_monitoring.traffic.reader import open_traffic

    start, cpu = time.perf_counter(), time.process_time()
    traffic = open_traffic(folder)
    design = read_design(REPOSITORY / "recipes" / "monitoring" / "online-metrics.yaml")
    if name == "read":
        rows = sum(batch.num_rows for batch in traffic.batches(traffic.columns))
        assert rows == traffic.rows
    elif name == "sample":
        assert draw(traffic, design, budget, 7).queue.table.num_rows == budget
    else:
        expected_precision(traffic, design, [budget // 2, budget, 2 * budget, 4 * budget])
    print(time.perf_counter() - start, time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def write_log(folder: Path, rows: int) -> None:
    """Write a simulated part with new ids until there are enough rows."""
    sys.path.insert(0, str(REPOSITORY / "tests" / "support"))
    from simulated_traffic import simulate_traffic

    day = folder / "day=2026-11-01"
    if day.exists():
        return
    day.mkdir(parents=True)
    table, _ = simulate_traffic(min(rows, PART_ROWS), 1, days=1, start=date(2026, 11, 1))
    random = np.random.default_rng(2)
    for part, first in enumerate(range(0, rows, PART_ROWS)):
        own = table.slice(0, min(PART_ROWS, rows - first))
        ids = [f"item-{first + n:010d}" for n in random.permutation(own.num_rows).tolist()]
        pq.write_table(own.set_column(0, "id", pa.array(ids)), day / f"part-{part:05d}.parquet")


if __name__ == "__main__":
    main()
