"""The private attributes of Lightning that training needs; no other module of the trainer touches one.

Written for Lightning 2.6: read these three places again before another release is allowed in ``pyproject.toml``.
"""

import lightning.pytorch as pl


def ends_optimizer_step(trainer: pl.Trainer) -> bool:
    """Whether an optimizer step follows, or has followed, the current batch.

    Lightning decides this from ``accumulate_grad_batches`` and the end of the epoch, and offers no public way to ask.
    """
    return not trainer.fit_loop._should_accumulate()


def disable_signal_handling(trainer: pl.Trainer) -> None:
    """Leave SIGTERM and SIGUSR1 to :class:`~vigil_training.distributed.preemption.Preemption`.

    Lightning's own handlers save a checkpoint within the signal handler, which is reported to hang, and its loop asks all ranks
    for a pending SIGTERM at every batch. No argument of ``Trainer`` turns either off.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
