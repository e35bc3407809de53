"""The metrics of a training: against loops in float64 over what a run has seen, and without an effect on it."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vigil_training.tracking.local_metrics import last_hours
from vigil_training.tracking.machine_use import MachineMeter
from vigil_training.tracking.metrics import METRICS, is_exact
from vigil_training.trainer.callbacks import metrics as callback
from vigil_training.trainer.callbacks.metrics import COUNTED, count_batch
from vigil_training.trainer.lightning_module import TrainingModule, part_of

STEPS = 12


@pytest.fixture(scope="module")
def watched(make_recipe, train, tmp_path_factory):
    """A run of two batches a step, its lines of training metrics by step, and what its steps have computed."""
    seen = {}
    clip, loss = TrainingModule._clip_gradients, TrainingModule.batch_loss

    def _clip_gradients(self):
        gradients = {n: p.grad.double() for n, p in self.model.named_parameters() if p.requires_grad and p.grad is not None}
        seen[self.trainer.global_step + 1]["gradients"] = gradients
        return clip(self)

    def batch_loss(self, batch):
        with torch.random.fork_rng():  # of the same dropout
            raw_NL = self.model(batch).raw_NL.detach().double()
        step = seen.setdefault(self.trainer.global_step + 1, {"epoch": self.trainer.current_epoch})
        step.setdefault("batches", []).append((batch, raw_NL))
        return loss(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "_clip_gradients", _clip_gradients)
        patch.setattr(TrainingModule, "batch_loss", batch_loss)
        changes = {"training__max_steps": STEPS, "training__accumulate": 2, "model__encoders__text__lr_factor": 0.1}
        run = train(
            make_recipe(**changes, loss={"kind": "bce", "label_weights": {"cat": 3.0}}),
            tmp_path_factory.mktemp("watched") / "run",
        )
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return run, {line["step"]: line for line in lines if "train/loss" in line}, seen


def test_metrics_callback_logs_what_metrics_lists(watched):
    run, lines, _ = watched
    assert list(lines) == [1, 10]
    parts = {"cat", "bright"}, {"text", "image", "fusion", "heads"}, {"text", "image"}
    expected = {"step", "epoch", "hours", "train/loss", "train/lr", "train/gradient_norm", "train/skipped_steps"}
    expected |= {f"train/loss/{label}" for label in parts[0]} | {f"train/gradient_norm/{part}" for part in parts[1]}
    expected |= {f"train/lr/{modality}" for modality in parts[2]} | {"train/quarantined_items", "train/padding/tokens"}
    expected |= {"ranks/data_wait", "system/cpu", "system/memory_gb"}
    assert set(lines[1]) == expected
    assert set(lines[10]) == expected | {f"speed/{name}" for name in ("step_seconds", "items", "tokens", "images")}
    logged = {key for line in map(json.loads, run.metrics.read_text().splitlines()) for key in line} - {"step"}
    assert all(sum(metric.matches(key) for metric in METRICS) == 1 for key in logged)


def test_hours_rise_from_those_before_the_start(watched, monkeypatch):
    run, *_ = watched
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    hours = [line["hours"] for line in lines]
    assert 0 < hours[0] < hours[-1] < 1
    assert hours == sorted(hours)
    assert last_hours(run.path) == hours[-1]
    sent = []
    trainer = SimpleNamespace(loggers=[SimpleNamespace(log_metrics=lambda line, step: sent.append(line))])
    resumed = callback.MetricsCallback(None, None, hours=2.0)
    monkeypatch.setattr(callback, "training_module", lambda module: module)
    resumed.on_train_start(trainer, SimpleNamespace(device=torch.device("cpu")))
    trainer.current_epoch, trainer.global_step = 1, 20
    resumed._log(trainer, {})
    assert 2.0 <= sent[0]["hours"] < 2.1


def test_plan_of_a_run_is_in_its_folder(watched):
    run, _, seen = watched
    plan = json.loads(run.plan.read_text())
    assert (plan["steps"], plan["ranks"], plan["strategy"]) == (STEPS, 1, "single")
    ends = [max(step for step, of in seen.items() if of["epoch"] == epoch) for epoch in range(len(plan["epoch_ends"]) - 1)]
    assert plan["epoch_ends"][:-1] == ends
    assert plan["epoch_ends"][-1] >= STEPS
    assert plan["memory"]["weights"] == 4 * plan["parameters"]


def test_gradient_norms_are_those_of_a_loop(watched):
    _, lines, seen = watched
    for step, line in lines.items():
        squares = {}
        for name, gradient in seen[step]["gradients"].items():
            total = sum(float(value) ** 2 for value in gradient.flatten())
            squares[part_of(name)] = squares.get(part_of(name), 0.0) + total
        for part, total in squares.items():
            assert line[f"train/gradient_norm/{part}"] == pytest.approx(total**0.5, rel=1e-5)
        assert line["train/gradient_norm"] == pytest.approx(sum(squares.values()) ** 0.5, rel=1e-5)


def test_losses_of_labels_are_those_of_a_loop(watched):
    run, lines, seen = watched
    for step, line in lines.items():
        for place, label in enumerate(run.recipe.taxonomy.labels):
            losses = []
            for batch, raw_NL in seen[step]["batches"]:
                for target, logit in zip(batch.targets[:, place].tolist(), raw_NL[:, place].tolist(), strict=True):
                    if target == target:
                        losses.append(np.log1p(np.exp(-logit if target else logit)))
            assert line[f"train/loss/{label}"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_padding_and_rates_are_those_of_the_batches(watched):
    run, lines, seen = watched
    for step, line in lines.items():
        masks = [
            batch.segments["text"].inputs["attention_mask"] for batch, _ in seen[step]["batches"] if "text" in batch.segments
        ]
        used, slots = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
        assert line["train/padding/tokens"] == pytest.approx(1 - used / slots)
    last = lines[10]
    assert last["train/lr/text"] == pytest.approx(last["train/lr"] / 10)
    assert last["train/lr/image"] == last["train/lr"] < run.recipe.optimizer.lr
    since = [step for step in seen if 1 < step <= 10 and seen[step]["epoch"] == last["epoch"]]
    items = sum(len(batch) for step in since for batch, _ in seen[step]["batches"])
    assert items > 0
    assert last["speed/items"] * last["speed/step_seconds"] == pytest.approx(items / len(since), rel=1e-6)
    assert 0 < last["system/memory_gb"] < 64
    assert 0 <= last["system/cpu"] <= 1


def test_count_batch_counts_seconds_of_audio_without_padding():
    from vigil_data.loading.batch import Batch, Segments

    time = torch.tensor([[0.0, 5.0], [5.0, 6.5], [0.0, 2.0]])
    audio = Segments(torch.tensor([0, 0, 2]), {"waveform": torch.zeros(3, 80)}, torch.zeros(3, dtype=torch.int64), time)
    counts = count_batch(Batch(("a", "b", "c"), {"audio": audio}, torch.zeros(3, 1)), 5.0)
    assert {name: float(counts[name]) for name in COUNTED} == {
        "items": 3,
        "tokens": 0,
        "token_slots": 0,
        "images": 0,
        "audio_seconds": 8.5,
        "window_seconds": 15.0,
    }


def test_training_is_the_same_without_metrics(watched, make_recipe, train, saved, monkeypatch, tmp_path):
    with_metrics = watched[0]
    monkeypatch.setattr(callback, "_is_logged", lambda step: False)
    run = train(with_metrics.recipe, tmp_path / "run")
    expected, found = (saved(each.checkpoint("last")) for each in (with_metrics, run))
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def test_machine_meter_reads_a_busy_core_and_the_memory_of_the_process():
    meter = MachineMeter(torch.device("cpu"))
    time.sleep(0.05)  # The kernel counts in hundredths of a second.
    before = meter.read()
    kept = np.ones(10_000_000)
    first = meter.read()
    assert first.memory_gb - before.memory_gb == pytest.approx(kept.nbytes / 1e9, abs=0.02)
    assert 0 <= before.cpu <= 1
    assert np.isnan([first.gpu, first.gpu_memory_gb]).all()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("encoders.text.model.layer.weight", "text"),
        ("projections.text.weight", "fusion"),
        ("heads.heads.0.weight", "heads"),
        ("experts.image.weight", "heads"),
        ("answers.weight", "heads"),
        ("position.role_RD", "fusion"),
        ("similarity", "fusion"),
    ],
)
def test_part_of(name, part):
    assert part_of(name) == part


def test_is_exact_refuses_what_is_not_a_metric():
    with pytest.raises(KeyError):
        is_exact("train/nonsense")


def test_metrics_are_those_of_the_guide():
    guide = (Path(__file__).parents[3] / "docs" / "tracking.md").read_text()
    rows = [line for line in guide.splitlines() if line.startswith("| `") and line.count(" | ") >= 2]
    for metric in METRICS:
        assert f"| `{metric.name}`{'' if metric.exact else ' *'} | {metric.meaning} | {metric.needs} |" in rows, metric.name
