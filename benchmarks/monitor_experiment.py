"""An experiment over a traffic log: time and memory, by the number of decisions.

usage: python benchmarks/monitor_experiment.py [--rows 200000]

Champion and shadow decide the same items on 14 days; two metrics of all decisions, and a guardrail in the slices of a column. A
hash split assigns authors. Each line is a process of its own, so that its peak memory is its own; reading all columns that are
needed is the yardstick of the same run. CPU seconds count where the machine is busy.

Last table (AMD EPYC, 2 virtual cores, one thread, machine busy):

    step                                   decisions   seconds     CPU s  peak MiB
    read the columns of both arms            400,000       7.8       0.6       307
    shadow                                   400,000      11.1       0.9       307
    hash split by author                     200,000       5.9       0.4       307
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).resolve().parent.parent
PART_ROWS = 100_000
STEPS = {"read": "read the columns of both arms", "shadow": "shadow", "hash": "hash split by author"}


def main() -> None:
    """Print the table, or do one step in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.step:
        step(given.step, given.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "traffic"
        write_log(folder, given.rows)
        print(f"{'step':36}{'decisions':>12}{'seconds':>10}{'CPU s':>10}{'peak MiB':>10}", flush=True)
        for name, title in STEPS.items():
            command = [sys.executable, __file__, "--step", name, "--folder", str(folder)]
            seconds, cpu, peak = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
            rows = given.rows if name == "hash" else 2 * given.rows
            print(f"{title:36}{rows:>12,}{seconds:>10.1f}{cpu:>10.1f}{peak:>10.0f}", flush=True)


def step(name: str, folder: Path) -> None:
    """Print the seconds of a step and the peak memory of this process."""
    from vigil_monitoring.experiments.decisions import needed_columns
    from vigil_monitoring.experiments.experiment import evaluate_experiment
    from vigil_monitoring.experiments.spec import Experiment
    from vigil_monitoring.traffic import open_traffic

    metrics = [{"metric": "review_load", "margin": 0.01}, {"metric": "action_rate", "margin": 0.01, "better": "lower"}]
    guardrails = [{"metric": "review_load", "margin": 0.01, "by": "language"}]
    bundles = {"champion": "b" * 64, "challenger": "c" * 64}
    keys = {"name": "benchmark", "metrics": metrics, "guardrails": guardrails, "horizon_days": 14}
    start, cpu = time.perf_counter(), time.process_time()
    if name == "read":
        spec = Experiment.model_validate(keys)
        for role in ("live", "shadow"):
            for _ in open_traffic(folder, role=role).batches(needed_columns(spec, ["language"])):
                pass
    else:
        split = {"split": {"kind": "hash", "salt": "s"}} if name == "hash" else bundles
        path = folder.with_name("split") if name == "hash" else folder
        evaluate_experiment(Experiment.model_validate({**keys, **split}), path)
    print(time.perf_counter() - start, time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def write_log(folder: Path, rows: int) -> None:
    """Write simulated parts of both roles with new ids and authors, and the log of a hash split next to them."""
    sys.path.insert(0, str(REPOSITORY / "tests" / "support"))
    from simulated_traffic import days_of, simulate_traffic

    from vigil_monitoring.experiments.assignment import unit_places

    for part in range(-(-rows // PART_ROWS)):
        table, _ = simulate_traffic(min(PART_ROWS, rows - part * PART_ROWS), part, prevalence=0.02, days=14)
        for column in ("id", "author"):
            values = pa.array([f"{part}-{value}" for value in table[column].to_pylist()])
            table = table.set_column(table.schema.get_field_index(column), column, values)
        other = with_text(with_text(table, "role", ["shadow"] * len(table)), "bundle", ["c" * 64] * len(table))
        place = unit_places("s", table["author"].combine_chunks())
        split = with_text(table, "bundle", ["c" * 64 if at < 0.5 else "b" * 64 for at in place.tolist()])
        for name, to, written in (("live", folder, table), ("shadow", folder, other), ("live", folder.with_name("split"), split)):
            for day, of in days_of(written).items():
                (to / f"day={day}").mkdir(parents=True, exist_ok=True)
                pq.write_table(of, to / f"day={day}" / f"part-{name}-{part}.parquet")


def with_text(table: pa.Table, column: str, values: list[str]) -> pa.Table:
    """Return the table with another column of text."""
    return table.set_column(table.schema.get_field_index(column), column, pa.array(values))


if __name__ == "__main__":
    main()
