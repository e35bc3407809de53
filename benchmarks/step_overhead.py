"""Overhead of a training step over a loop written by hand with the same model, batches, loss, optimizer, clipping and precision.

usage: python benchmarks/step_overhead.py [--steps 60] [--repeats 5] [--precision fp32|bf16] [--clock wall|cpu]

Both sides are measured in turns in one process, on batches that are already in memory, so that neither loading nor the load of
the machine affects one side only. The time of a side is the median step of each repeat; the table shows the median over repeats
of their ratio. The target is 1.05 at most. On a busy machine use the CPU clock and one thread (OMP_NUM_THREADS=1).

Last table (fp32, 20 steps, 3 repeats, 2 threads, wall clock, two idle cores of an AMD EPYC): ratios .870, .801, .899, median .87.
Repeats scatter by about a tenth on this machine.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models
from torch import nn

from vigil_data.loading.batch import Batch, Segments
from vigil_data.progress import Progress
from vigil_modeling.losses import MaskedLoss
from vigil_modeling.safety_model import SafetyModel, build_model
from vigil_training.checkpoint.writer import CheckpointWriter
from vigil_training.distributed.preemption import Preemption
from vigil_training.distributed.session import open_session
from vigil_training.distributed.strategies.factory import build_strategy
from vigil_training.distributed.world import World
from vigil_training.recipe.recipe import Recipe
from vigil_training.tracking.local_metrics import JsonLinesLogger
from vigil_training.trainer.callbacks import CheckpointCallback, EarlyStopping, MetricsCallback, RankSync, TrainingProgress
from vigil_training.trainer.lightning_module import TrainingModule
from vigil_training.trainer.lightning_trainer import build_trainer
from vigil_training.trainer.lr_scheduler import build_lr_scheduler
from vigil_training.trainer.optimizer import build_optimizer
from vigil_training.trainer.quarantine import Quarantine
from vigil_training.trainer.warning_filters import ignore_expected_warnings

TARGET = 1.05
WARM_UP = 10
Side = Callable[[Recipe, SafetyModel, list[Batch], Callable[[], float]], list[float]]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def write_tokenizer(path: Path) -> None:
    """Write a tokenizer of two words: the recipe has to name one, although the batches hold random token ids."""
    Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(path))


def make_recipe(precision: str, tokenizer: Path) -> Recipe:
    """Return a recipe of a text encoder of MiniLM's shape (6 layers, width 384) and a small image encoder, random weights."""
    bert = {
        "model_type": "bert",
        "vocab_size": 8000,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 128,
    }
    labels: dict[str, dict[str, str]] = {name: {} for name in ("hate", "offensive", "sexism", "scam")}
    return Recipe.model_validate(
        {
            "name": "overhead",
            "taxonomy": {"name": "overhead", "heads": {"all": {"labels": labels}}},
            "data": {"dataset": "unused"},
            "inputs": {"text": {"tokenizer": {"kind": "local", "path": str(tokenizer)}}, "image": {"size": 64}},
            "model": {
                "width": 128,
                "encoders": {
                    "text": {"weights": {"kind": "random"}, "config": bert},
                    "image": {"weights": {"kind": "random"}, "name": "resnet10t"},
                },
            },
            "training": {"precision": precision, "accelerator": "cpu"},
            "checkpoint": {"every_steps": None},
            "tracking": {"mode": "disabled"},
        }
    )


def make_batches(count: int, items: int = 16) -> list[Batch]:
    """Return batches as the loader makes them: each item has text, a quarter an image; a third of the targets are unknown."""
    random = np.random.default_rng(0)
    batches = []

    def segments(item: torch.Tensor, inputs: dict[str, torch.Tensor]) -> Segments:
        return Segments(item, inputs, torch.zeros_like(item), torch.full((len(item), 2), -1.0))

    for number in range(count):
        tokens = int(random.integers(16, 48))
        ids = torch.from_numpy(random.integers(0, 8000, (items, tokens)))
        text = segments(torch.arange(items), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        pixels = torch.from_numpy(random.integers(0, 256, (items // 4, 3, 64, 64)).astype(np.uint8))
        image = segments(torch.arange(0, items, 4), {"pixels": pixels})
        targets = random.integers(0, 2, (items, 4)).astype(np.float32)
        targets[random.random((items, 4)) < 1 / 3] = np.nan
        share = 1 / float((~np.isnan(targets)).sum())
        names = tuple(f"{number}-{row}" for row in range(items))
        batches.append(Batch(names, {"text": text, "image": image}, torch.from_numpy(targets), share))
    return batches


def by_hand(recipe: Recipe, model: SafetyModel, batches: list[Batch], now: Callable[[], float]) -> list[float]:
    """Return the seconds of each step of a plain PyTorch loop."""
    criterion = MaskedLoss(recipe.loss, recipe.taxonomy)
    optimizer = build_optimizer(model, recipe.model, recipe.optimizer)
    scheduler = build_lr_scheduler(optimizer, recipe.optimizer, len(batches))
    model.train()
    ends = [now()]
    for batch in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.training.precision == "bf16"):
            value = criterion(model(batch).logits_NL, batch.targets) * batch.share
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.training.clip or float("inf"))
        optimizer.step()
        scheduler.step()
        value.item()
        ends.append(now())
    return [after - before for before, after in pairwise(ends)]


class Clock(pl.Callback):
    """Records when each step ends, after all other callbacks."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.ends: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the start of the first step."""
        del trainer, pl_module
        self.ends = [self.now()]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int) -> None:
        """Record the end of a step, which includes loading the next batch."""
        del trainer, pl_module, batch
        if batch_idx:
            self.ends.append(self.now())


class InMemoryLoader:
    """Batches in memory with the interface of the loader; nothing is waited for."""

    seconds = waited_seconds = 0.0
    workers = 0

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


def by_vigil(recipe: Recipe, model: SafetyModel, batches: list[Batch], now: Callable[[], float]) -> list[float]:
    """Return the seconds of each step of the trainer of :func:`vigil_training.trainer.fit.fit_recipe`, with its callbacks."""
    clock = Clock(now)
    with (
        tempfile.TemporaryDirectory() as folder,
        ignore_expected_warnings(),
        open_session(recipe, World(), Preemption()) as session,
        Progress("training", unit="steps") as progress,
    ):
        path = Path(folder)
        module = TrainingModule(model, MaskedLoss(recipe.loss, recipe.taxonomy), recipe, len(batches), session.ranks)
        with closing(
            CheckpointWriter(path / "checkpoints", session.world, recipe.checkpoint, recipe.training.mode, token="bench")
        ) as writer:
            rank_sync = RankSync(session, writer, Quarantine(path / "quarantine.jsonl", 1, 0.0), recipe.training.max_skipped)
            callbacks = [
                clock,
                (metrics := MetricsCallback(session.ranks, rank_sync)),
                rank_sync,
                TrainingProgress(progress, len(batches), rank_sync, metrics),
                EarlyStopping(recipe.training),
                CheckpointCallback(recipe, "", writer, session, rank_sync),
            ]
            strategy: Any = build_strategy(recipe, session.world, session.device)
            strategy.writer = writer
            trainer = build_trainer(recipe, strategy, session, [JsonLinesLogger(path / "metrics.jsonl", 0)], callbacks)
            trainer.limit_val_batches = 0
            warnings.filterwarnings("ignore", r"You defined a `validation_step` but have no `val_dataloader`")
            trainer.fit(module, InMemoryLoader(batches))
    return [after - before for before, after in pairwise(clock.ends)]


def main() -> int:
    """Read the arguments; fail above the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(tokenizer := Path(folder) / "tokenizer.json")
        return measure(make_recipe(arguments.precision, tokenizer), arguments.steps, arguments.repeats, arguments.clock)


def measure(recipe: Recipe, steps: int, repeats: int, clock: str) -> int:
    """Measure both sides in turns, print the table, and return the exit status."""
    batches = make_batches(steps)
    torch.manual_seed(0)
    weights = build_model(recipe.model, recipe.inputs, recipe.taxonomy).state_dict()
    sides: dict[str, Side] = {"by hand": by_hand, "vigil": by_vigil}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in sides if repeat % 2 == 0 else reversed(sides):
            model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
            model.load_state_dict(weights)
            seconds[side].append(statistics.median(sides[side](recipe, model, batches, CLOCKS[clock])[WARM_UP:]))
    pairs = list(zip(seconds["by hand"], seconds["vigil"], strict=True))
    ratio = statistics.median(vigil / hand for hand, vigil in pairs)
    title = f"{recipe.training.precision}, {steps} steps, {torch.get_num_threads()} threads, {clock} clock"
    table = Table("step", *sides, "ratio", title=title)
    for repeat, (hand, vigil) in enumerate(pairs):
        table.add_row(f"repeat {repeat + 1}, median ms", f"{hand * 1e3:.1f}", f"{vigil * 1e3:.1f}", f"{vigil / hand:.3f}")
    table.add_section()
    table.add_row("median over repeats", *(f"{statistics.median(seconds[s]) * 1e3:.1f}" for s in sides), f"{ratio:.3f}")
    Console().print(table)
    print(f"overhead {ratio - 1:+.1%}; the target is at most {TARGET - 1:.0%}")
    return 0 if ratio <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
