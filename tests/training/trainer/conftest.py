"""Fixtures: the weights of each optimizer step of a run, and a run that was stopped and resumed."""

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


class _Stop(Exception):
    """Stops a run."""


@pytest.fixture
def train_with_a_stop(train, monkeypatch):
    """A function that trains a recipe, stops it after its third step, resumes it, and returns the run."""

    def run(recipe, folder):
        record = MetricsCallback.on_train_batch_end

        def on_train_batch_end(self, trainer, *rest):
            record(self, trainer, *rest)
            if trainer.global_step == 3 and ends_optimizer_step(trainer):
                raise _Stop

        with monkeypatch.context() as patch:
            patch.setattr(MetricsCallback, "on_train_batch_end", on_train_batch_end)
            with pytest.raises(_Stop):
                train(recipe, folder)
        resumed = train(recipe, folder)
        assert "resuming" in resumed.log.read_text()
        return resumed

    return run
