"""Import of generated rows of text at sizes that differ by a factor of ten, or of a collection of datasets: rate and memory.

usage: python benchmarks/import_rows.py [--rows 100000 1000000] [--collection ../shared/data]

Each import is a process of its own, from CSV through a source to a committed dataset. Memory is its peak: what it has allocated
(anonymous), and the file pages that the kernel had mapped for it at that time, which it can take back.

Last table (AMD EPYC, 2 virtual cores, load average 12):

    import                             rows  seconds   rows/s  rows/CPU s  anonymous MB  mapped MB
    generated, one source           100,000     26.1    3,826      25,800           146        112
    generated, one source         1,000,000    171.8    5,822      26,440           304        146
    shared-text, 8 sources          169,591     65.0    2,609      18,982           229        113

What grows are the hashes of ids (16 to 32 bytes a row), the digests (16) and Lance's buffers for a file of a million rows.
"""

import argparse
import multiprocessing
import random
import tempfile
import threading
import time
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path

from vigil.workflows.shipped_recipes import RECIPES, taxonomy_file
from vigil_data.dataset.dataset import write
from vigil_data.importers.collection import open_import

HEADER = "rewire_id,text,label_sexist,label_category,label_vector,split\n"
WORDS_PER_ROW = 16


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--collection", type=Path, help="import recipes/collections/shared-text.yaml from this folder, too")
    options = parser.parse_args()
    print(f"{'import':28}{'rows':>11}{'seconds':>9}{'rows/s':>9}{'rows/CPU s':>12}{'anonymous MB':>14}{'mapped MB':>11}")
    with tempfile.TemporaryDirectory() as name:
        for rows in options.rows:
            file = Path(name) / f"{rows}.csv"
            generate(file, rows)
            report("generated, one source", "edos", file, Path(name) / f"d{rows}")
            file.unlink()
        if options.collection:
            report(
                "shared-text, 8 sources", str(RECIPES / "collections" / "shared-text.yaml"), options.collection, Path(name) / "d"
            )


def generate(file: Path, rows: int) -> None:
    """Write a CSV of the layout of edos with random words."""
    chance = random.Random(0)
    words = [f"word{n}" for n in range(20_000)]
    with file.open("w", encoding="utf-8") as out:
        out.write(HEADER)
        for row in range(rows):
            text = " ".join(chance.choices(words, k=WORDS_PER_ROW))
            label, split = "sexist" if row % 7 == 0 else "not sexist", "train" if row % 10 else "test"
            out.write(f"{row},{text} {row},{label},none,none,{split}\n")


def report(name: str, source: str, path: Path, to: Path) -> None:
    """Import in a new process and print its row of the table."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=measured, args=(source, path, to, there))
    process.start()
    there.close()  # so that recv ends if the process does
    rows, seconds, cpu, anonymous, mapped = here.recv()
    process.join()
    print(
        f"{name:28}{rows:>11,}{seconds:>9.1f}{rows / seconds:>9,.0f}{rows / cpu:>12,.0f}{anonymous:>14,.0f}{mapped:>11,.0f}",
        flush=True,
    )


def measured(source: str, path: Path, to: Path, reply: Connection) -> None:
    """Import, and send rows, seconds, seconds of CPU and peaks of memory in MB."""
    peaks = {"RssAnon": 0, "RssFile": 0}
    threading.Thread(target=watch, args=(peaks,), daemon=True).start()
    start, start_cpu = time.perf_counter(), time.process_time()
    readers = open_import(source, path, taxonomy_file)
    written = write(to, chain.from_iterable(reader.items() for reader in readers), on_leak="skip")
    taken, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    rows = written.kept + written.skipped + written.quarantined
    reply.send((rows, taken, cpu, peaks["RssAnon"] / 1e3, peaks["RssFile"] / 1e3))


def watch(peaks: dict[str, int]) -> None:
    """Keep the largest values of /proc/self/status, in KB."""
    while True:
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], int(value.split()[0]))
        time.sleep(0.02)


if __name__ == "__main__":
    main()
