"""Kills at random moments, by any signal, on any rank: the run ends like one that was never stopped."""

import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from driven_training import DrivenTraining, start_training

from vigil_training.checkpoint.reader import list_checkpoints

STRATEGIES = {
    "single": {"kind": "single"},
    "ddp": {"kind": "ddp", "devices": 2},
    "zero-2": {"kind": "deepspeed", "stage": 2, "devices": 2},
}
SIGNALS = ("SIGKILL", "SIGTERM", "SIGUSR1")
MOMENTS = ("any", "validation", "writing")
EPOCHS = 5


class Attempts:
    """Starts of one run, each watched: which items each rank trained on, and what it resumed from."""

    def __init__(self, recipe: Path, run: Path) -> None:
        self.recipe, self.run, self.count = recipe, run, 0

    def start(self, **options) -> DrivenTraining:
        self.seen = self.run.with_name(f"{self.run.name}-seen-{self.count}")
        self.seen.mkdir()
        self.count += 1
        return start_training(self.recipe, self.run, seen=str(self.seen), **options)

    def finish(self) -> None:
        process = self.start()
        output = process.read_errors(180)
        assert process.returncode == 0, output

    def pid(self, rank: int) -> int | None:
        file = self.seen / f"rank-{rank}.pid"
        return int(file.read_text()) if file.is_file() else None

    def rows_by_epoch(self) -> dict[int, Counter]:
        """How often each item was trained on, leaving out steps that were lost with a process and made again."""
        begins = [
            int(match.group(1)) if match else 0
            for match in (
                re.search(r"resuming .* at step (\d+)", line)
                for line in (self.run / "train.log").read_text().splitlines()
                if "resuming" in line or "from the beginning" in line
            )
        ]
        # An attempt that was killed before it began to train has left no line.
        trained = [a for a in range(self.count) if any(self.run.with_name(f"{self.run.name}-seen-{a}").glob("*.jsonl"))]
        began = begins[-len(trained) :]
        rows: dict[int, Counter] = {}
        for attempt, (number, next_begin) in enumerate(zip(trained, [*began[1:], sys.maxsize], strict=True)):
            del attempt
            for file in self.run.with_name(f"{self.run.name}-seen-{number}").glob("*.jsonl"):
                for text in file.read_text().splitlines():
                    line = json.loads(text)
                    if line["step"] < next_begin:
                        rows.setdefault(line["epoch"], Counter()).update(line["ids"])
        return rows


def changed(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


@pytest.mark.prove
@pytest.mark.parametrize("name", STRATEGIES)
def test_fit_recipe_survives_kills_at_any_moment(name, make_recipe, proofs, assert_same_run, tmp_path):
    recipe = make_recipe(name=name, training__epochs=EPOCHS, checkpoint__every_steps=3, strategy=STRATEGIES[name])
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.model_dump_json())
    undisturbed = Attempts(file, tmp_path / "undisturbed")
    undisturbed.finish()
    expected = undisturbed.rows_by_epoch()
    assert set(expected) == set(range(EPOCHS))
    assert all(set(rows.values()) == {1} and len(rows) == len(expected[0]) for rows in expected.values())

    dice, ranks, kills = random.Random(f"{name} 2"), STRATEGIES[name].get("devices", 1), Counter()
    needed, runs = proofs(1, 21), 0
    while kills.total() < needed:
        runs += 1
        attempts = Attempts(file, tmp_path / f"run-{runs}")
        while kills.total() < needed:
            ended, kill = one_kill(attempts, dice, ranks, kills.total())
            if ended:
                break
            kills[kill] += 1
        attempts.finish()
        assert_same_run(tmp_path / "undisturbed", attempts.run)
        assert attempts.rows_by_epoch() == expected
    counted = ", ".join(f"{signal_} {moment} {count}" for (signal_, moment), count in sorted(kills.items()))
    print(
        f"{name}: {kills.total()} kills ({counted}) over {runs} runs; weights, numbers, thresholds equal, each row once an epoch"
    )


def one_kill(attempts: Attempts, dice: random.Random, ranks: int, number: int) -> tuple[bool, tuple[str, str]]:
    """Start the run and kill it; gives whether it had ended by itself before, and what was done."""
    name, moment, rank = SIGNALS[number % 3], MOMENTS[number // 3 % 3], dice.randrange(ranks)
    if moment == "any":
        process = attempts.start()
        while process.poll() is None and not any(attempts.seen.glob("*.jsonl")):
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 1.5))
        # A cluster sends these two to every rank; a machine that is lost takes its ranks with it.
        victims = [rank] if name == "SIGKILL" else range(ranks)
        for victim in victims:
            pid = attempts.pid(victim)
            if pid is not None and process.poll() is None:
                try:
                    os.kill(pid, getattr(signal, name))
                except ProcessLookupError:
                    continue
    else:
        per_epoch = 7 if ranks > 1 else 10
        step = dice.randrange(EPOCHS) * per_epoch + per_epoch if moment == "validation" else dice.randrange(2, EPOCHS * per_epoch)
        process = attempts.start(kill={"signal": name, "rank": rank, "when": moment, "step": step, "or_later": True})
    output = process.read_errors(180)
    status = process.returncode
    if status == 0:
        return True, (name, moment)
    lost = -signal.SIGKILL if ranks == 1 else 85
    assert status == (lost if name == "SIGKILL" else 85), output
    assert not (attempts.run / "failure.json").exists(), output
    return False, (name, moment)
