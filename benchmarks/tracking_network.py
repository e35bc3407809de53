"""What a server of W&B that cannot be reached costs a training: `tracking.mode: online` against `disabled`.

usage: python benchmarks/tracking_network.py [--items 1000] [--steps 200] [--rounds 3]

Each training of `recipes/demo-text.yaml` is a process of its own; the settings take turns:

- disabled: no tracking;
- offline: the tracked run stays in the run folder;
- dead: nothing listens at the server's address;
- silent: the server accepts connections and never answers;
- lost: packets to the server's address (192.0.2.1, which is nobody's) get no answer, where the network drops them.

The table has medians over rounds: seconds from the first step to the last, their ratio to the training without tracking, seconds
of the whole process, and how many ended with status 0. The target is 1.03 at most.

Last table (two cores of an AMD EPYC, one thread, --items 300 --steps 160 --rounds 3; 18.0 s without tracking): offline 1.022,
dead 1.014, silent 1.016, lost 1.009; the process takes 25.3, 27.1, 27.0, 36.9 and 26.9 s; all end with status 0. With all
processes of a training on one core (--steps 120 --rounds 4): 1.046, 1.064, 1.055, 1.045.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vigil_data.demo import generate
from vigil_data.progress import Progress

TARGET = 1.03
RECIPE = Path(__file__).parents[1] / "recipes" / "demo-text.yaml"
SETTINGS = ("disabled", "offline", "dead", "silent", "lost")


def train(folder: Path, steps: int, mode: str) -> None:
    """Train, and write the seconds from the first step to the last."""
    from vigil_training.recipe.resolve import dump_recipe, resolve_recipe
    from vigil_training.tracking.local_metrics import JsonLinesLogger
    from vigil_training.trainer.fit import fit_recipe

    times = []
    log_metrics = JsonLinesLogger.log_metrics

    def timed(*arguments: object, **named: object) -> None:
        times.append(time.perf_counter())
        log_metrics(*arguments, **named)  # type: ignore[arg-type]

    JsonLinesLogger.log_metrics = timed  # type: ignore[method-assign, assignment]
    overrides = [f"data.dataset={folder.parent / 'dataset'}", f"tracking.mode={mode}", "training.accelerator=cpu"]
    resolved = resolve_recipe(RECIPE, [*overrides, f"training.max_steps={steps}", f"training.epochs={steps}"])
    fit_recipe(resolved.recipe, dump_recipe(resolved), folder / "run")
    (folder / "seconds").write_text(str(times[-1] - times[0]))


def environment(setting: str, silent: int) -> dict[str, str]:
    """Return the environment of a setting's training."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        unused = probe.getsockname()[1]
    urls = {"dead": f"http://127.0.0.1:{unused}", "silent": f"http://127.0.0.1:{silent}", "lost": "http://192.0.2.1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return kept | ({"WANDB_API_KEY": "0123456789" * 4, "WANDB_BASE_URL": urls[setting]} if setting in urls else {})


def measure(folder: Path, steps: int, rounds: int, settings: list[str]) -> dict[str, list[tuple[float, float, int]]]:
    """Return seconds of training, seconds of the process and its status, for each setting and round."""
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in settings}
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent, Progress("training") as progress:
        for number in range(rounds * len(settings)):
            turn, place = number // len(settings), number % len(settings)
            setting = settings[(place + turn) % len(settings)]
            progress("training", number, rounds * len(settings))
            run = folder / f"{setting}-{turn}"
            run.mkdir()
            mode = setting if setting in ("disabled", "offline") else "online"
            command = [sys.executable, __file__, "--train", json.dumps([str(run), steps, mode])]
            begun = time.perf_counter()
            done = subprocess.run(
                command, env=environment(setting, silent.getsockname()[1]), capture_output=True, text=True, check=False
            )
            whole = time.perf_counter() - begun
            if done.returncode:
                print(done.stderr[-2000:], file=sys.stderr)
            seconds = float((run / "seconds").read_text()) if (run / "seconds").is_file() else float("nan")
            found[setting].append((seconds, whole, done.returncode))
    return found


def main() -> int:
    """Read the arguments, measure, print the table; fail above the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=int, default=1000, help="items of the demonstration's dataset")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--train", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        run, steps, mode = json.loads(arguments.train)
        train(Path(run), steps, mode)
        return 0
    with tempfile.TemporaryDirectory() as place:
        with Progress("generating") as progress:
            generate(Path(place) / "dataset", items=arguments.items, progress=progress)
        found = measure(Path(place), arguments.steps, arguments.rounds, arguments.settings)
    title = f"demo-text, {arguments.steps} steps, {arguments.rounds} rounds"
    table = Table("tracking", "training, s", "ratio", "process, s", "status 0", title=title)
    medians, clean = {}, True
    for name, runs in found.items():
        training, whole = (statistics.median(run[column] for run in runs) for column in (0, 1))
        base = found[arguments.settings[0]]
        medians[name] = statistics.median(run[0] / other[0] for run, other in zip(runs, base, strict=True))
        good = sum(run[2] == 0 for run in runs)
        clean &= good == len(runs)
        table.add_row(name, f"{training:.1f}", f"{medians[name]:.3f}", f"{whole:.1f}", f"{good} of {len(runs)}")
    Console().print(table)
    return 0 if clean and max(medians.values()) <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
