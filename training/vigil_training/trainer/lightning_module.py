"""The Lightning module: one step of training, one pass of validation, and the optimizer with its schedule."""

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from vigil_data.errors import Failure
from vigil_data.loading.batch import Batch
from vigil_data.loading.packing import Refusal
from vigil_modeling.loss import MaskedBCE
from vigil_modeling.safety_model import SafetyModel
from vigil_modeling.specs import ModelSpec
from vigil_training.distributed.rank_group import RankGroup
from vigil_training.distributed.strategies.checkpointed import broadcast_batch_norm_statistics
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.specs import OptimizerSpec, Ranks


class TrainingFailure(Failure):
    """Training cannot go on, though the recipe was right."""


class Quarantine:
    """The items that could not be decoded, each once, in a file; too many of them stop the run.

    Args:
        path: JSON lines; what an interrupted run left there still counts.
        rows: items that the run reads.
        limit: share of them that may be refused.
        writes: whether this process writes the file; all of them count.
    """

    def __init__(self, path: Path, rows: int, limit: float, writes: bool = True) -> None:
        self._path = path
        self._rows = rows
        self._limit = limit
        self._writes = writes
        lines = path.read_text().splitlines() if path.is_file() else []
        self._ids = {json.loads(line)["id"] for line in lines}

    def add(self, refusals: Iterable[Refusal]) -> None:
        """Note ``refusals``.

        Raises:
            TrainingFailure: if more than the limit are refused by now.
        """
        new = [r for r in {r.id: r for r in refusals}.values() if r.id not in self._ids]
        if not new:
            return
        self._ids.update(r.id for r in new)
        if self._writes:
            lines = (json.dumps({"id": r.id, "modality": r.modality, "index": r.index, "reason": r.reason}) for r in new)
            with self._path.open("a") as file:
                file.writelines(line + "\n" for line in lines)
        if len(self._ids) > self._limit * self._rows:
            raise TrainingFailure(
                f"{len(self._ids)} of {self._rows} items cannot be decoded, more than data.quarantine_limit {self._limit:g}; "
                f"the last: item {new[-1].id}, {new[-1].modality} {new[-1].index}: {new[-1].reason}; all are in {self._path}"
            )


class TrainingModule(pl.LightningModule):
    """A safety model in training.

    Args:
        model: what is trained.
        loss: summed over the known targets of a batch.
        recipe: labels, optimizer, clipping and accumulation.
        steps: optimizer steps of the whole run.
        ranks: by which ranks put together what each of them has seen.

    Attributes:
        refused: items that this rank could not decode since they were last taken up.
        forward_seconds: spent in forward passes since they were last taken up.
        step_metrics: of the last optimizer step; ``train/loss`` is this rank's part.
        step_ids: the items of this rank in the last optimizer step.
        skipped: whether the last optimizer step was left out, because the gradient was not finite.
        validation_metrics: of the last validation.
    """

    def __init__(self, model: SafetyModel, loss: MaskedBCE, recipe: Recipe, steps: int, ranks: RankGroup) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self._recipe = recipe
        self._training = recipe.training
        self._steps = steps
        self._ranks = ranks
        self._several = isinstance(recipe.strategy, Ranks)
        self._group_loss: Tensor | None = None
        self._validation: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.refused: list[Refusal] = []
        self.forward_seconds = 0.0
        self.step_metrics: dict[str, Tensor] = {}
        self.step_ids: list[str] = []
        self.skipped = False
        self.validation_metrics: dict[str, float] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The batch's part of the global batch's mean loss; see :meth:`vigil_data.loading.loader.TrainingLoader.share`."""
        start = time.perf_counter()
        self.refused += batch.refused
        prediction = self.model(batch, touch_all=self._several)
        loss: Tensor = self.loss(prediction.logits_NL, batch.targets) * batch.share
        if not loss.requires_grad:  # Nothing could be decoded: the step still has to have gradients, which are zero.
            loss = loss + 0 * torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum()
        part = loss.detach() / self._training.accumulate
        if batch_idx % self._training.accumulate == 0 or self._group_loss is None:
            self._group_loss, self.step_ids = part, list(batch.ids)
        else:
            self._group_loss = self._group_loss + part
            self.step_ids += batch.ids
        self.forward_seconds += time.perf_counter() - start
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient by its norm over all weights, and leave the step out where that is not finite.

        DeepSpeed does both itself.
        """
        if self._sharded_step is not None:
            return
        parameters = [p for p in self.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                # The batch lacks a modality: its gradient is zero, as it is where another rank has it, and not a reason for AdamW
                # to pass over its weights.
                parameter.grad = torch.zeros_like(parameter)
        if self._training.clip is None:
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        else:
            norm = nn.utils.clip_grad_norm_(parameters, self._training.clip)
        self.skipped = not bool(torch.isfinite(norm))
        if self.skipped:
            optimizer.zero_grad()  # AdamW passes over weights without a gradient.
        self._note_step(optimizer, norm)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, and free the gradients at once: kept through the next forward pass, their memory could not be used again."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self._sharded_step is None:
            optimizer.zero_grad()
            return
        self.skipped = self._sharded_step.skipped_last_step
        self._note_step(optimizer, self._sharded_step.gradient_norm())

    @property
    def _sharded_step(self) -> Any:
        """The strategy, if it clips and steps by itself."""
        strategy = self.trainer.strategy
        return strategy if hasattr(strategy, "skipped_last_step") else None

    def _note_step(self, optimizer: Any, norm: Tensor) -> None:
        if self._group_loss is None:
            raise RuntimeError("an optimizer step without a batch")
        rate = max(group["lr"] for group in optimizer.param_groups)
        self.step_metrics = {"train/loss": self._group_loss, "train/lr": torch.tensor(rate), "train/gradient_norm": norm}

    def on_validation_start(self) -> None:
        """Go by rank 0's running statistics of batch norms on every rank, as a checkpoint does."""
        if self._several:
            broadcast_batch_norm_statistics(self.model)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep logits and targets; the numbers are made at the end, over all of them."""
        del batch_idx
        self.refused += batch.refused
        if len(batch) or self._several:
            logits_NL = self.model(batch, touch_all=self._several).logits_NL.float()
            total, weight = self.loss(logits_NL, batch.targets), self.loss.weight(batch.targets)
            self._validation.append((logits_NL.cpu(), batch.targets.cpu(), total.cpu(), weight.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Measure ranking per label and the mean loss; a label with one class alone among its known targets has no number.

        Raises:
            TrainingFailure: if the model gives something that is not a number.
        """
        parts = zip(*self._validation, strict=True)
        own = [torch.cat([t.reshape(1) if t.ndim == 0 else t for t in part]).numpy() for part in parts]
        self._validation.clear()
        gathered = [parts for parts in self._ranks.gather_objects(own) if parts]
        if not gathered:
            return
        logits_NL, targets_NL, totals, weights = (np.concatenate(parts) for parts in zip(*gathered, strict=True))
        if not np.isfinite(logits_NL).all():
            raise TrainingFailure(
                f"the model gives logits that are not finite in the validation after step {self.trainer.global_step}: training "
                "diverged; a lower optimizer.lr, training.clip or precision fp32 may help"
            )
        if len(logits_NL):
            self.validation_metrics = measure(logits_NL, targets_NL, self._recipe.taxonomy.labels)
        if weights.sum() > 0:
            self.validation_metrics["validation/loss"] = float(totals.sum()) / float(weights.sum())
        for name, value in self.validation_metrics.items():
            self.log(name, value, prog_bar=name == self._training.monitor, logger=False, batch_size=1)

    def configure_optimizers(self) -> Any:
        """AdamW with a learning rate for each group, warmed up and annealed at every step."""
        spec = self._recipe.optimizer
        groups = parameter_groups(self.model, self._recipe.model, spec)
        optimizer = AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay, fused=True)
        schedule = LambdaLR(optimizer, lambda step: schedule_factor(step, self._steps, spec.warmup, spec.lr_end))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def measure(logits_NL: np.ndarray, targets_NL: np.ndarray, labels: tuple[str, ...]) -> dict[str, float]:
    """Average precision and AUROC of each label that has both classes among its known targets, and their means."""
    from vigil_evaluation.metrics import auroc, average_precision

    metrics: dict[str, float] = {}
    for name, metric in (("ap", average_precision), ("auroc", auroc)):
        values = {label: metric(targets_NL[:, i], logits_NL[:, i]) for i, label in enumerate(labels)}
        known = {label: value for label, value in values.items() if value is not None}
        metrics |= {f"validation/{name}/{label}": value for label, value in known.items()}
        if known:
            metrics[f"validation/macro_{name}"] = sum(known.values()) / len(known)
    return metrics


def metric_names(labels: tuple[str, ...]) -> list[str]:
    """Every name that ``training.monitor`` may have."""
    per_label = [f"validation/{metric}/{label}" for metric in ("ap", "auroc") for label in labels]
    return ["validation/macro_ap", "validation/macro_auroc", "validation/loss", *per_label]


def schedule_factor(step: int, steps: int, warmup: float, lr_end: float) -> float:
    """The learning rate at ``step`` of ``steps``, counted from 0, relative to its peak.

    It rises linearly over the first ``warmup`` of the steps and falls along half a cosine to ``lr_end`` at the last one.
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    progress = min((step - rising + 1) / max(steps - rising, 1), 1.0)
    return lr_end + (1 - lr_end) * (1 + math.cos(math.pi * progress)) / 2


def parameter_groups(model: SafetyModel, spec: ModelSpec, optimizer: OptimizerSpec) -> list[dict[str, Any]]:
    """Trained weights by learning rate and decay.

    An encoder's weights have its ``lr_factor``, times ``layer_decay`` for each of its layers above them (as in ELECTRA, Clark
    et al. 2020, appendix A). Biases, norms and other vectors are not decayed.
    """
    factors: dict[int, float] = {}
    for modality in model.modalities:
        encoder_spec, encoder = getattr(spec.encoders, modality), model.encoder(modality)
        factors |= {id(p): encoder_spec.lr_factor for p in encoder.parameters()}
        for depth, layer in enumerate(reversed(encoder.layers())):
            factors |= {id(p): encoder_spec.lr_factor * encoder_spec.layer_decay**depth for p in layer}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((factors.get(id(parameter), 1.0), parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "lr": optimizer.lr * factor, "weight_decay": optimizer.weight_decay if decayed else 0.0}
        for (factor, decayed), parameters in groups.items()
    ]
