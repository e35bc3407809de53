"""Fixture: the weights of each optimizer step of a run."""

import pytest

from vigil_training.trainer.callbacks import MetricsCallback
from vigil_training.trainer.lightning_internals import ends_optimizer_step


@pytest.fixture
def recorded(monkeypatch):
    """Weights and running statistics of each optimizer step of a run in training; the initial ones are those of step 0."""
    states = {}
    start, record = MetricsCallback.on_train_start, MetricsCallback.on_train_batch_end

    def keep(trainer, module):
        states[trainer.global_step] = {name: t.detach().clone() for name, t in module.model.state_dict().items()}

    def on_train_start(self, trainer, module):
        start(self, trainer, module)
        keep(trainer, module)

    def on_train_batch_end(self, trainer, module, *rest):
        record(self, trainer, module, *rest)
        if ends_optimizer_step(trainer):
            keep(trainer, module)

    monkeypatch.setattr(MetricsCallback, "on_train_start", on_train_start)
    monkeypatch.setattr(MetricsCallback, "on_train_batch_end", on_train_batch_end)
    return states
