"""One rank of tests/training/distributed/test_deepspeed.py: trains a small module under ZeRO, and records the results.

Run as ``python deepspeed_worker.py JOB`` with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from vigil_training.checkpoint.shards import inventory
from vigil_training.distributed.strategies.cluster_environment import WorldEnvironment
from vigil_training.distributed.strategies.deepspeed import Float32Precision, ZeroStrategy
from vigil_training.distributed.world import World
from vigil_training.recipe.recipe import Recipe

BATCHES = 7
ACCUMULATE = 3
"""Optimizer steps of an epoch take 3, 3 and 1 batches."""
LIGHTNING_WARNINGS = (
    r"The `srun` command is available on your system but is not used",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)
"""Warnings of Lightning that are unrelated to ZeRO; any other is an error."""


class Branch(nn.Module):
    """Stand-in for a modality's encoder; its sizes are divisible by no number of ranks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(width, 7)
        self.layers = nn.Sequential(nn.Linear(7, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 5))
        self.mark_D = nn.Parameter(torch.full((5,), 0.1))
        self.frozen.requires_grad_(False)

    def forward(self, x_ND: Tensor) -> Tensor:
        hidden: Tensor = self.layers(torch.tanh(self.frozen(x_ND))) + self.mark_D
        return hidden


class Model(nn.Module):
    """Two modalities, a tied pair of weights, and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({"a": Branch(6), "b": Branch(4)})
        self.norm = nn.BatchNorm1d(5)
        self.mix = nn.Linear(5, 5)
        self.again = nn.Linear(5, 5, bias=False)
        self.again.weight = self.mix.weight
        self.head = nn.Linear(5, 3)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        hidden = torch.zeros(len(batch["targets"]), 5)
        for name, branch in self.branches.items():
            if name in batch:
                hidden = hidden + branch(batch[name])
            else:
                hidden = hidden + 0.0 * branch(torch.zeros(1, branch.frozen.in_features)).sum()
        hidden = self.mix(hidden + self.norm(hidden.sin()))
        logits: Tensor = self.head(self.again(torch.relu(hidden)))
        return logits


class Batches:
    """Loader of given batches; Lightning would treat a list as several loaders."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        return iter(self.batches)


def make_model(seed: int) -> Model:
    """Return the model with the weights of a seed."""
    torch.manual_seed(seed)
    return Model()


def make_batch(epoch: int, index: int, rank: int) -> dict[str, Any]:
    """Return the batch of one rank; its size and modalities differ between ranks."""
    random = torch.Generator().manual_seed(1000 * epoch + 10 * index + rank)
    rows = int(torch.randint(3, 9, (), generator=random))
    kinds = (("a",), ("b",), ("a", "b"))[int(torch.randint(3, (), generator=random))]
    batch: dict[str, Any] = {name: torch.randn(rows, 6 if name == "a" else 4, generator=random) for name in kinds}
    batch["targets"] = (torch.rand(rows, 3, generator=random) < 0.5).float()
    return batch


def batch_loss(logits: Tensor, batch: dict[str, Any]) -> Tensor:
    """Return the loss summed over rows and labels."""
    return nn.functional.binary_cross_entropy_with_logits(logits.float(), batch["targets"], reduction="sum")


def group_of(index: int) -> range:
    """Return the batches of the same optimizer step."""
    first = index - index % ACCUMULATE
    return range(first, min(first + ACCUMULATE, BATCHES))


def rows_of(epoch: int, index: int, world: int) -> int:
    """Count the rows of an optimizer step over all its batches and ranks."""
    return sum(len(make_batch(epoch, i, rank)["targets"]) for i in group_of(index) for rank in range(world))


def rate(step: int) -> float:
    """Return the learning rate at an optimizer step, relative to its peak."""
    return 1.0 / (1 + 0.1 * step)


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return two groups: matrices with weight decay, vectors without, with different learning rates."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "lr": 0.01, "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim == 1], "lr": 0.02, "weight_decay": 0.0},
    ]


class Pieces:
    """Reader of fragments gathered from all ranks; ``wrong`` lists tensors with overlaps or gaps."""

    def __init__(self, gathered: list[list[tuple[str, str, tuple[int, ...], int, Tensor]]]) -> None:
        self.tensors: dict[tuple[str, str], Tensor] = {}
        times: dict[tuple[str, str], Tensor] = {}
        for kind, name, shape, start, values in (fragment for rank in gathered for fragment in rank):
            full = self.tensors.setdefault((kind, name), torch.zeros(torch.Size(shape).numel(), dtype=values.dtype))
            full[start : start + len(values)] = values
            count = times.setdefault((kind, name), torch.zeros(len(full), dtype=torch.int64))
            count[start : start + len(values)] += 1
        self.wrong = [key for key, count in times.items() if not bool((count == 1).all())]

    def has(self, kind: str, name: str) -> bool:
        return (kind, name) in self.tensors

    def read_range(self, kind: str, name: str, start: int, count: int) -> Tensor:
        return self.tensors[kind, name][start : start + count]


def gather_fragments(strategy: Any, model: nn.Module) -> list[Any]:
    """Gather the fragments of all ranks on every rank, for :class:`Pieces`."""
    own = [(f.kind, f.name, f.shape, f.start, f.values.detach().clone()) for f in strategy.fragments(model)]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered


class Module(pl.LightningModule):
    """Trains the model for one entry of the job, and records the results.

    Args:
        fit: the job's entry.
        folder: where fragments are kept and found.
    """

    def __init__(self, fit: dict[str, Any], folder: Path) -> None:
        super().__init__()
        self.model = make_model(fit["seed"])
        self.job = fit
        self.folder = folder
        self.recorded: dict[str, Any] = {"losses": [], "norms": [], "skipped": [], "validation": [], "bytes": {}, "dtypes": []}

    def train_dataloader(self) -> Any:
        epoch = self.current_epoch + self.job["first_epoch"]
        rank = dist.get_rank()
        return Batches([{"index": i, "epoch": epoch, "rank": rank, **make_batch(epoch, i, rank)} for i in range(BATCHES)])

    def val_dataloader(self) -> Any:
        return Batches([make_batch(99, 0, dist.get_rank())])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        del batch_idx
        world = dist.get_world_size()
        logits = self.model(batch)
        loss = batch_loss(logits, batch) * ACCUMULATE * world / rows_of(batch["epoch"], batch["index"], world)
        self.recorded["losses"].append(float(loss.detach()) / ACCUMULATE / world)
        self.recorded["dtypes"] = [str(x.dtype) for x in (logits, batch["targets"], loss)]
        if [batch["epoch"], batch["index"], batch["rank"]] in self.job["nan_at"]:
            loss = loss * float("nan")
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        del batch_idx
        self.recorded["validation"].append(float(batch_loss(self.model(batch), batch)))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        del optimizer
        self.recorded["bytes"] = self.trainer.strategy.allocated_bytes()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.recorded["norms"].append(float(self.trainer.strategy.gradient_norm()))
        self.recorded["skipped"].append(self.trainer.strategy.skipped_last_step)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(parameter_groups(self.model), betas=(0.9, 0.99), fused=True)
        begun = self.job["first_epoch"] * len(range(0, BATCHES, ACCUMULATE))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step + begun))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        if self.job["load"]:
            pieces = Pieces(torch.load(self.folder / f"{self.job['load']}.pt"))
            self.trainer.strategy.load_fragments(self.model, pieces)
            self.keep("loaded")

    def on_train_epoch_end(self) -> None:
        epoch = self.current_epoch + self.job["first_epoch"]
        if epoch in self.job["save_after"]:
            self.keep(str(epoch))

    def keep(self, when: str) -> None:
        gathered = gather_fragments(self.trainer.strategy, self.model)
        if dist.get_rank() == 0:
            torch.save(gathered, self.folder / f"{self.job['name']}-{when}.pt")
        dist.barrier()


def run(fit: dict[str, Any], folder: Path) -> None:
    """Run one fit of a job."""
    rank, world = dist.get_rank(), dist.get_world_size()
    place = World(rank, world, rank, world, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    recipe = Recipe.model_validate_json(json.dumps(fit["recipe"]))
    module = Module(fit, folder)
    strategy = ZeroStrategy.from_recipe(recipe.strategy, recipe, place, torch.device("cpu"), WorldEnvironment(place))  # type: ignore[arg-type]
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy=strategy,
        plugins=[Float32Precision()],
        max_epochs=fit["epochs"],
        accumulate_grad_batches=ACCUMULATE,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module)
    entries = inventory(module.model).items()
    module.recorded["inventory"] = {name: [list(e.shape), e.dtype, e.trained, e.buffer, e.tied_to] for name, e in entries}
    (folder / f"{fit['name']}-rank{rank}.json").write_text(json.dumps(module.recorded))


if __name__ == "__main__":
    warnings.simplefilter("error")
    for message in LIGHTNING_WARNINGS:
        warnings.filterwarnings("ignore", message)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    path = Path(sys.argv[1])
    for entry in json.loads(path.read_text())["fits"]:
        run(entry, path.parent)
    dist.barrier()
    dist.destroy_process_group()
