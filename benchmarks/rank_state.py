"""Weights, gradients and optimizer state of each rank under DDP, ZeRO-1, 2, 3 and FSDP2, against what `vigil plan` predicts.

usage: python benchmarks/rank_state.py [--ranks 1 2 4] [--json]

Ranks are processes on this machine (gloo). Each trains a model of about 1.3 million weights, 29 % of them frozen, with odd
sizes, with DeepSpeed, DDP or FSDP2 configured as in a run; storages are added up after a step and the next backward pass.
A row has the rank with the most. Fails if a total differs by more than 5 %.

Last table (DeepSpeed 0.19.8, MB on a rank, measured / predicted):

    ranks  strategy  weights      gradients    optimizer    masters      total          off
    1      DDP       5.27 / 5.27  3.75 / 3.75  7.50 / 7.50  0.00 / 0.00  16.51 / 16.51  +0.0%
    1      ZeRO-1    5.27 / 5.27  3.75 / 3.75  7.50 / 7.50  3.75 / 3.75  20.26 / 20.26  +0.0%
    1      ZeRO-2    5.27 / 5.27  3.75 / 3.75  7.50 / 7.50  3.75 / 3.75  20.26 / 20.26  +0.0%
    1      ZeRO-3    5.27 / 5.29  3.75 / 3.75  7.50 / 7.50  3.75 / 3.75  20.26 / 20.29  -0.1%
    1      FSDP2     5.27 / 5.27  3.75 / 3.75  7.50 / 7.50  0.00 / 0.00  16.51 / 16.51  +0.0%
    2      DDP       5.27 / 5.27  3.75 / 3.75  7.50 / 7.50  0.00 / 0.00  16.51 / 16.51  +0.0%
    2      ZeRO-1    5.27 / 5.27  2.28 / 2.28  3.75 / 3.75  1.87 / 1.87  13.16 / 13.17  -0.0%
    2      ZeRO-2    5.27 / 5.27  2.28 / 2.28  3.75 / 3.75  1.87 / 1.87  13.16 / 13.17  -0.0%
    2      ZeRO-3    2.66 / 2.66  1.87 / 1.87  3.75 / 3.75  1.87 / 1.87  10.16 / 10.16  +0.0%
    2      FSDP2     2.64 / 2.64  1.88 / 1.88  3.76 / 3.76  0.00 / 0.00  8.28 / 8.28    +0.0%
    4      DDP       5.27 / 5.27  3.75 / 3.75  7.50 / 7.50  0.00 / 0.00  16.51 / 16.51  +0.0%
    4      ZeRO-1    5.27 / 5.27  1.52 / 1.52  1.87 / 1.87  0.94 / 0.94  9.60 / 9.60    +0.0%
    4      ZeRO-2    5.27 / 5.27  1.52 / 1.52  1.87 / 1.87  0.94 / 0.94  9.60 / 9.60    +0.0%
    4      ZeRO-3    1.34 / 1.34  0.94 / 0.94  1.87 / 1.87  0.94 / 0.94  5.09 / 5.09    +0.0%
    4      FSDP2     1.32 / 1.32  0.94 / 0.94  1.88 / 1.88  0.00 / 0.00  4.15 / 4.15    +0.0%
"""

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

TOLERANCE = 0.05
WIDTH = 251
STRATEGIES: tuple[Literal["ddp", 1, 2, 3, "fsdp2"], ...] = ("ddp", 1, 2, 3, "fsdp2")


def make_model() -> Any:
    """Return a model of about 1.3 million weights whose sizes are not divisible by any number of ranks."""
    from torch import nn

    layers = [nn.Sequential(nn.Linear(WIDTH, 3 * WIDTH), nn.GELU(), nn.Linear(3 * WIDTH, WIDTH)) for _ in range(3)]
    layers.append(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 701), nn.Linear(701, 3)))
    layers[0].requires_grad_(False)
    return nn.Sequential(*layers)


def make_zero(stage: int, numel: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration in a run."""
    from types import SimpleNamespace

    from vigil_training.distributed.strategies.deepspeed import zero_config
    from vigil_training.recipe.specs import DeepSpeed, TrainingSpec

    recipe: Any = SimpleNamespace(training=TrainingSpec(accelerator="cpu"))
    return zero_config(DeepSpeed(stage=stage), recipe, numel)  # type: ignore[arg-type]


def measure(strategy: Literal["ddp", 1, 2, 3, "fsdp2"]) -> dict[str, int]:
    """Return the bytes of this rank after the second backward pass."""
    import torch
    import torch.distributed as dist

    torch.manual_seed(0)
    model = make_model()
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if p.ndim > 1]}, {"params": [p for p in trained if p.ndim == 1]}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    rows = torch.randn(8, WIDTH)
    if strategy == "ddp":
        ddp = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        ddp(rows).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        ddp(rows).sum().backward()
        state = [v for values in optimizer.state.values() for v in values.values() if v.numel() > 1]
        gradients = [p.grad for p in trained if p.grad is not None]
        found = {"weights": list(model.parameters()), "gradients": gradients, "optimizer": state}
        return {name: _bytes(tensors) for name, tensors in found.items()} | {"masters": 0}
    if strategy == "fsdp2":
        return measure_shards(model, rows)
    import deepspeed

    from vigil_training.distributed.strategies.deepspeed_internals import disable_op_builders
    from vigil_training.distributed.strategies.deepspeed_shards import allocated_bytes

    disable_op_builders()
    config = make_zero(strategy, sum(p.numel() for p in model.parameters()))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    for step in range(2):
        engine.backward(engine(rows).sum())
        if step == 0:
            engine.step()
    found = allocated_bytes(engine.optimizer, engine.module)
    dist.barrier()
    return {name: found[name] for name in ("weights", "gradients", "optimizer", "masters")}


def measure_shards(model: Any, rows: Any) -> dict[str, int]:
    """Return the bytes of this rank under FSDP2, each layer a unit."""
    import torch
    from torch.distributed.fsdp import fully_shard

    for unit in [*model, model]:
        fully_shard(unit)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    groups = [{"params": [p for n, p in model.named_parameters() if n in trained and (p.ndim > 1) is m]} for m in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    model(rows).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    model(rows).sum().backward()
    state = [v.to_local() for values in optimizer.state.values() for v in values.values() if hasattr(v, "to_local")]
    weights = [p.to_local().detach() for p in model.parameters()]
    gradients = [p.grad.to_local() for p in model.parameters() if p.grad is not None]
    return {"weights": _bytes(weights), "gradients": _bytes(gradients), "optimizer": _bytes(state), "masters": 0}


def _bytes(tensors: Any) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def predict(strategy: Literal["ddp", 1, 2, 3, "fsdp2"], world: int) -> dict[str, int]:
    """Return the bytes that the plan predicts."""
    from vigil_training.planning.memory import StateBytes, persistent_bytes, sharded, state_bytes

    model = make_model()
    if strategy == "fsdp2":
        return dataclasses.asdict(
            state_bytes(sharded([(tuple(p.shape), p.requires_grad) for p in model.parameters()], world), "ddp", 1)
        )
    parameters = [(p.numel(), p.requires_grad) for p in model.parameters()]
    groups = [[p for p in model.parameters() if p.requires_grad and (p.ndim > 1) is matrix] for matrix in (True, False)]
    groups.append([p for p in model.parameters() if not p.requires_grad])
    states = [state_bytes([(p.numel(), p.requires_grad) for p in group], strategy, world) for group in groups]
    state = sum(states, StateBytes(0, 0, 0))
    whole = 0
    if strategy == 3:
        numels = [numel for numel, _ in parameters]
        zero = make_zero(3, sum(numels))["zero_optimization"]
        thresholds = [zero[f"stage3_{of}_persistence_threshold"] for of in ("param", "model")]
        whole = persistent_bytes(numels, *thresholds)
    return {
        "weights": state.weights + whole,
        "gradients": state.gradients,
        "optimizer": state.optimizer,
        "masters": state.masters,
    }


def run_ranks(world: int) -> list[list[dict[str, int]]]:
    """Measure every strategy on ``world`` processes: bytes of each rank, by strategy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        for rank in range(world):
            env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            env |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
            command = [sys.executable, __file__, "--worker", folder]
            with (Path(folder) / f"{rank}.log").open("w") as log:
                ranks.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
        try:
            for rank, process in enumerate(ranks):
                if process.wait(timeout=240):
                    raise SystemExit(f"rank {rank} failed: {(Path(folder) / f'{rank}.log').read_text()[-3000:]}")
            said = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]
        finally:
            for process in ranks:
                process.kill()
                process.wait()
    return [list(of_strategy) for of_strategy in zip(*said, strict=True)]


def work(folder: Path) -> None:
    """Run one rank."""
    import torch.distributed as dist

    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    found = [measure(strategy) for strategy in STRATEGIES]
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def main() -> int:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return 0
    rows: list[dict[str, Any]] = []
    for world in arguments.ranks:
        for strategy, ranks in zip(STRATEGIES, run_ranks(world), strict=True):
            measured = max(ranks, key=lambda held: sum(held.values()))
            predicted = predict(strategy, world)
            off = sum(measured.values()) / sum(predicted.values()) - 1
            rows.append({"ranks": world, "strategy": strategy, "measured": measured, "predicted": predicted, "off": off})
    if arguments.json:
        print(json.dumps(rows))
    else:
        show(rows)
    return int(any(abs(row["off"]) > TOLERANCE for row in rows))


def show(rows: list[dict[str, Any]]) -> None:
    """Print a row for each strategy and number of ranks: measured / predicted, in MB."""
    from rich.console import Console
    from rich.table import Table

    names = ("weights", "gradients", "optimizer", "masters")
    table = Table("ranks", "strategy", *names, "total", "off", title="MB on a rank: measured / predicted")
    for row in rows:
        pairs = [(row["measured"][name], row["predicted"][name]) for name in names]
        pairs.append((sum(row["measured"].values()), sum(row["predicted"].values())))
        cells = [f"{m / 1e6:.2f} / {p / 1e6:.2f}" for m, p in pairs]
        strategy = {"ddp": "DDP", "fsdp2": "FSDP2"}.get(row["strategy"], f"ZeRO-{row['strategy']}")
        table.add_row(str(row["ranks"]), strategy, *cells, f"{row['off']:+.1%}")
    Console(width=130).print(table)


if __name__ == "__main__":
    sys.exit(main())
