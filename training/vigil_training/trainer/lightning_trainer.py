"""Lightning's ``Trainer`` for a recipe."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import Strategy

from vigil_training.distributed.session import Session
from vigil_training.distributed.strategies.factory import build_plugins
from vigil_training.recipe.recipe import Recipe
from vigil_training.trainer.lightning_internals import disable_signal_handling


def build_trainer(
    recipe: Recipe, strategy: Strategy, session: Session, loggers: list[Any], callbacks: list[pl.Callback]
) -> pl.Trainer:
    """Build the trainer.

    The number of steps, gradient clipping, logging, checkpoints and progress are the business of the module and callbacks, so
    Lightning's own are off.

    Args:
        recipe: length, accumulation and precision.
        strategy: from :func:`vigil_training.distributed.strategies.factory.build_strategy`.
        session: device and ranks.
        loggers: receive metrics; none on ranks other than 0.
        callbacks: in the order in which they run.
    """
    world = session.world
    trainer = pl.Trainer(
        accelerator=session.device.type,
        strategy=strategy,
        devices=world.local_size,
        num_nodes=world.nodes,
        max_epochs=recipe.training.epochs,
        accumulate_grad_batches=recipe.training.accumulate,
        # Epochs differ in their number of batches, so the loader is asked for its length before each.
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=loggers or False,
        callbacks=callbacks,
        plugins=build_plugins(recipe, world, session.device),
        # Without a callback that saves checkpoints, Lightning would add its own.
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        # ZeRO-3 and FSDP2 gather weights by hooks that inference mode does not allow.
        inference_mode=recipe.strategy.kind not in ("deepspeed", "fsdp2"),
        # Checkpoints and metrics have their own paths in the run folder.
        default_root_dir=None,
        barebones=False,
    )
    disable_signal_handling(trainer)
    return trainer
