"""Observation of a training; ``driven_training.py`` starts one with these options.

as_world    use the batches of that many ranks in one process, in turn
every_step  log the metrics of each step to metrics.jsonl
seen        folder in which each rank writes which items it trained on: epoch, step, ids
kill        {"step": n, "signal": name, "rank": r, "when": "step" | "validation" | "writing", "or_later": true}: send itself a
            signal, once
nan         step whose loss becomes NaN on the last rank
"""

import json
import os
import re
import signal
from functools import partial
from pathlib import Path


def watch(options: dict) -> None:
    from vigil_training.trainer import data_module
    from vigil_training.trainer.callbacks import RankSync, metrics
    from vigil_training.trainer.lightning_module import TrainingModule

    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    if options.get("every_step"):
        metrics.LOG_EVERY_N_STEPS = 1
    if world := options.get("as_world"):
        data_module.plan = partial(_in_turn, data_module.plan, world)
    if folder := options.get("seen"):
        step = TrainingModule.training_step
        (Path(folder) / f"rank-{rank}.pid").write_text(str(os.getpid()))

        def training_step(self, batch, batch_idx):
            line = {"epoch": self.trainer.current_epoch, "step": self.trainer.global_step, "ids": list(batch.ids)}
            with (Path(folder) / f"rank-{rank}.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            return step(self, batch, batch_idx)

        TrainingModule.training_step = training_step
    if bad := options.get("nan"):
        before = TrainingModule.training_step

        def spoilt(self, batch, batch_idx):
            loss = before(self, batch, batch_idx)
            last = rank + 1 == self._ranks.world.size
            return loss * float("nan") if last and self.trainer.global_step + 1 == bad else loss

        TrainingModule.training_step = spoilt
    if kill := options.get("kill"):
        number, when = getattr(signal, kill["signal"]), kill.get("when", "step")
        if kill.get("rank", 0) != rank:
            return
        if when == "writing":
            _kill_while_writing(kill, number)
            return
        hook = {"step": "on_train_batch_end", "validation": "on_validation_batch_end"}[when]
        exchange = getattr(RankSync, hook)
        killed = []

        def killing(self, trainer, *rest, **named):
            step = trainer.global_step
            if not killed and (step == kill["step"] or (kill.get("or_later") and step > kill["step"])):
                killed.append(step)
                os.kill(os.getpid(), number)
            exchange(self, trainer, *rest, **named)

        setattr(RankSync, hook, killing)


def _in_turn(plan, world, costs, spec, seed, epoch, _one, **options):
    from vigil_data.loading.sampler import EpochPlan

    made = plan(costs, spec, seed, epoch, world, **options)
    return EpochPlan(made.items, made.bounds, made.table.reshape(-1, 1))


def _kill_while_writing(kill: dict, number: int) -> None:
    """Kill before a file of a checkpoint is flushed to the disk."""
    fsync, killed = os.fsync, []

    def killing(descriptor):
        found = re.search(r"step-(\d{8})", str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        step = int(found.group(1)) if found else -1
        if not killed and (step == kill["step"] or (kill.get("or_later") and step > kill["step"])):
            killed.append(step)
            os.kill(os.getpid(), number)
        fsync(descriptor)

    os.fsync = killing
