"""The Lightning module: what one optimizer step and one validation do.

An optimizer step reads from top to bottom in two methods: :meth:`TrainingModule.training_step` is the forward pass of a batch
and its scaled loss, and :meth:`TrainingModule.train_step` does the rest, from backward to logging. Everything else that
happens around a step (checkpoints, preemption, progress) is in :mod:`vigil_training.trainer.callbacks`.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from vigil_data.loading.batch import Batch
from vigil_data.loading.packing import Refusal
from vigil_modeling.losses import GroupDRO, MaskedLoss, TeacherTerm, auxiliary_loss, balance_gradients, span_loss, teacher_term
from vigil_modeling.multimodal_model import MultimodalModel, Prediction
from vigil_modeling.specs import ModelSpec
from vigil_training.distributed.rank_group import RankGroup
from vigil_training.distributed.strategies.checkpointed import broadcast_batch_norm_statistics
from vigil_training.planning.flops import FlopEstimate
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.specs import Ranks
from vigil_training.trainer.compilation import compile_all
from vigil_training.trainer.errors import TrainingFailure
from vigil_training.trainer.lr_scheduler import build_lr_scheduler
from vigil_training.trainer.modality_dropout import drop_modalities
from vigil_training.trainer.optimizer import build_optimizer


class TrainingModule(pl.LightningModule):
    """A safety model in training.

    Args:
        model: the model to train.
        loss: sum over the known targets of a batch.
        recipe: labels, optimizer, clipping and accumulation.
        total_steps: optimizer steps of the run.
        ranks: the group in which validation outputs and the losses of groups are gathered.
        group_names: the groups of ``loss.group_dro``; empty without it.
        releases: name of a parameter to the optimizer steps before it is trained (default: 0).

    Attributes:
        refused: items that this rank could not decode since :class:`~vigil_training.trainer.callbacks.RankSync` last took them.
        forward_seconds: time spent in forward passes since then.
        step_metrics: metrics of the last optimizer step; ``train/loss`` is this rank's part.
        part_norms: part of the model (:func:`part_of`) to the norm of its gradient in the last optimizer step, before clipping;
            under DeepSpeed only in steps that are measured, and empty if it offloads the optimizer.
        measures: whether the current optimizer step is to be measured: its losses of labels, and more under DeepSpeed.
        label_losses: this rank's sum of losses and number of targets of each label in those batches, ``[2, L]``, since
            :class:`~vigil_training.trainer.callbacks.MetricsCallback` last took them; ``None`` if there are none.
        step_ids: items of this rank in the last optimizer step.
        skipped: whether the last optimizer step was skipped because its gradient was not finite.
        validation_metrics: metrics of the last validation, the same on every rank.
        lr_position: function from an optimizer step to its place in the schedule, if the number of ranks has changed.
        flop_estimate: counts the floating-point operations of batches, if they are to be logged.
        flops: those of this rank since :class:`~vigil_training.trainer.callbacks.MetricsCallback` last logged them.
    """

    def __init__(
        self,
        model: MultimodalModel,
        loss: nn.Module,
        recipe: Recipe,
        total_steps: int,
        ranks: RankGroup,
        *,
        group_names: Sequence[str] = (),
        releases: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self._recipe = recipe
        self._training = recipe.training
        self._total_steps = total_steps
        self.lr_position: Callable[[int], float] | None = None
        self._ranks = ranks
        self._group_names = tuple(group_names)
        self._group_dro: GroupDRO | None = None
        if recipe.loss.group_dro is not None:
            assert isinstance(loss, MaskedLoss)
            self._group_dro = GroupDRO(loss, recipe.loss.group_dro.step_size, len(self._group_names), ranks.gather)
        self._releases = releases
        self._distributed = isinstance(recipe.strategy, Ranks)
        self._step_loss: Tensor | None = None
        self._validation: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.refused: list[Refusal] = []
        self.forward_seconds = 0.0
        self.step_metrics: dict[str, Tensor] = {}
        self.part_norms: dict[str, Tensor] = {}
        self.measures = False
        self.label_losses: Tensor | None = None
        self.step_ids: list[str] = []
        self.skipped = False
        self.validation_metrics: dict[str, float] = {}
        self.flop_estimate: FlopEstimate | None = None
        self.flops = 0.0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Run the forward pass of one batch and return its loss.

        The loss is scaled by the batch's share of the known targets of all batches and ranks of the optimizer step, so that the
        mean over them, which Lightning and the strategy take, is the mean over those targets; see
        :meth:`vigil_data.loading.loader.TrainingLoader.share`. The loss of group DRO is a mean of each batch's losses instead.
        """
        start = time.perf_counter()
        self.refused += batch.refused
        if self._training.modality_dropout:
            batch = drop_modalities(batch, self._training.modality_dropout)
        loss = self.batch_loss(batch)
        if self.flop_estimate is not None:
            self.flops += self.flop_estimate.of(batch, self.model.prompt_rows)
        if not loss.requires_grad:  # No item could be decoded: the step still needs gradients, which are zero.
            loss = loss + 0 * torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum()

        part = loss.detach() / self._training.accumulate
        if batch_idx % self._training.accumulate == 0 or self._step_loss is None:  # first batch of an optimizer step
            self._step_loss, self.step_ids = part, list(batch.ids)
        else:
            self._step_loss = self._step_loss + part
            self.step_ids += batch.ids
        self.forward_seconds += time.perf_counter() - start
        return loss

    def batch_loss(self, batch: Batch) -> Tensor:
        """Return the scaled loss of a batch, with the weighted losses of auxiliary heads and spans."""
        model = self._recipe.model
        spec = model.auxiliary_heads if isinstance(model, ModelSpec) else None
        balance = None if spec is None or spec.ogm_ge is None else partial(balance_gradients, spec.ogm_ge, batch.targets)
        prediction = self.model(batch, touch_all=self._distributed, balance=balance)
        teacher = self._teacher(prediction, batch)
        if self.measures:
            assert isinstance(self.loss, MaskedLoss)
            measured = torch.stack(self.loss.by_label(prediction.raw_NL, batch.targets, teacher))
            self.label_losses = measured if self.label_losses is None else self.label_losses + measured
        loss: Tensor
        if self._group_dro is not None:
            assert batch.group is not None
            loss = self._group_dro(prediction.raw_NL, batch.targets, batch.group)
        else:
            assert batch.share is not None, "the training loader sets it"
            loss = self.loss(prediction.raw_NL, batch.targets, teacher)
            if prediction.composites is not None:
                assert isinstance(self.loss, MaskedLoss)
                loss = loss + self.loss.of_composites(prediction.composites)
            loss = loss * batch.share
        if spec is not None:
            assert batch.share is not None, "the training loader sets it"
            loss = loss + spec.weight * batch.share * auxiliary_loss(self.loss, prediction.alone, batch.targets)
        if model.spans is not None and batch.spans is not None and prediction.spans_STK is not None:
            assert batch.share is not None, "the training loader sets it"
            of_spans = span_loss(prediction.spans_STK, batch.spans, batch.segments["text"].item)
            loss = loss + model.spans.weight * batch.share * of_spans
        return loss

    def _teacher(self, prediction: Prediction, batch: Batch) -> TeacherTerm | None:
        spec = self._recipe.distillation
        if spec is None or batch.teacher is None:
            return None
        return teacher_term(prediction.logits_NL, batch.teacher, spec.weight, spec.temperature)

    def train_step(self, optimizer: Any, forward_backward: Callable[[], Any]) -> None:
        """Make one optimizer step.

        Args:
            optimizer: AdamW, wrapped by Lightning, and by DeepSpeed under ZeRO.
            forward_backward: runs :meth:`training_step` on the last batch of the step, divides its loss by the number of batches,
                and runs backward, in which the strategy averages gradients over ranks. Earlier batches of the step
                (``training.accumulate``) have run the same way, and their gradients are there.
        """
        loss = forward_backward()

        if (zero := self._zero) is not None:
            # DeepSpeed holds the gradients in shards: its engine checks, clips, steps and frees them.
            self.part_norms = zero.part_norms(self._part_of) if self.measures else {}
            optimizer.step(closure=lambda: loss)
            norm, self.skipped = zero.gradient_norm(), zero.skipped_last_step
        else:
            norm = self._clip_gradients()
            self.skipped = not bool(torch.isfinite(norm))
            if self.skipped:
                optimizer.zero_grad()  # AdamW ignores weights without a gradient; the step still counts.
            optimizer.step(closure=lambda: loss)
            optimizer.zero_grad()  # Gradients kept during the next forward pass would take memory that it could use.

        assert self._step_loss is not None
        rates = [group["lr"] for group in optimizer.param_groups]
        self.step_metrics = {"train/loss": self._step_loss, "train/lr": torch.tensor(max(rates)), "train/gradient_norm": norm}
        for modality in self.model.modalities:
            if own := [rate for rate, parts in zip(rates, self._group_parts, strict=True) if modality in parts]:
                self.step_metrics[f"train/lr/{modality}"] = torch.tensor(max(own))
        if self._group_dro is not None:
            weights = zip(self._group_names, self._group_dro.weights_G, strict=True)
            self.step_metrics |= {f"train/group_weight/{name}": torch.tensor(weight) for name, weight in weights}
        # Lightning steps the learning-rate scheduler next; see configure_optimizers.

    def _clip_gradients(self) -> Tensor:
        """Clip the gradient by its norm over all weights, and return that norm before clipping."""
        parts: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parts.setdefault(part_of(name), []).append(parameter)
                if parameter.grad is None:
                    # No batch of the step has this modality. Its gradient is zero, as on ranks whose batches have it, so that
                    # AdamW decays these weights everywhere.
                    parameter.grad = torch.zeros_like(parameter)
        # Each gradient is read once: the norm of all is that of the norms of the parts.
        self.part_norms = {
            part: nn.utils.get_total_norm([p.grad for p in own if p.grad is not None]) for part, own in parts.items()
        }
        total: Any = torch.linalg.vector_norm(torch.stack(list(self.part_norms.values())))
        # Norms of shards under FSDP2 are added up over the ranks.
        norm: Tensor = total.full_tensor() if hasattr(total, "full_tensor") else total
        parameters = [parameter for each in parts.values() for parameter in each]
        if self._training.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self._training.clip, norm)
        return norm

    @property
    def _zero(self) -> Any:
        """The DeepSpeed strategy, which clips and steps by itself; ``None`` under other strategies."""
        strategy = self.trainer.strategy
        return strategy if hasattr(strategy, "skipped_last_step") else None

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Call :meth:`train_step`; Lightning calls this hook with the last batch of each optimizer step."""
        del epoch, batch_idx
        assert optimizer_closure is not None
        self.train_step(optimizer, optimizer_closure)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the weights of group DRO."""
        if self._group_dro is not None:
            checkpoint["group_dro"] = dict(zip(self._group_names, self._group_dro.weights_G.tolist(), strict=True))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the weights of group DRO."""
        if self._group_dro is not None:
            self._group_dro.weights_G = np.array([checkpoint["group_dro"][name] for name in self._group_names])

    def configure_optimizers(self) -> Any:
        """Build AdamW and the learning-rate schedule, which Lightning steps after each optimizer step."""
        optimizer = self._build_optimizer()
        scheduler = build_lr_scheduler(optimizer, self._recipe.optimizer, self._total_steps, self.lr_position)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _build_optimizer(self) -> torch.optim.Optimizer:
        optimizer = build_optimizer(self.model, self._recipe.model, self._recipe.optimizer, self._releases)
        trained = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        self._part_of = {id(parameter): part_of(name) for name, parameter in trained.items()}
        self._group_parts = [{self._part_of[id(p)] for p in group["params"]} for group in optimizer.param_groups]
        return optimizer

    def on_train_start(self) -> None:
        """Compile the encoders, if the recipe asks for it."""
        if self._training.compile:
            context = self.trainer.precision_plugin.forward_context()
            compile_all(self.model, self.device, context, self._distributed)

    def on_validation_start(self) -> None:
        """Use rank 0's running statistics of batch norms on every rank, as checkpoints do."""
        if self._distributed:
            broadcast_batch_norm_statistics(self.model)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep logits and targets; metrics are computed at the end, over all batches of all ranks."""
        del batch_idx
        self.refused += batch.refused
        if len(batch) or self._distributed:
            prediction = self.model(self.model.for_known_targets(batch), touch_all=self._distributed)
            assert isinstance(self.loss, MaskedLoss)
            total, weight = self.loss(prediction.raw_NL, batch.targets), self.loss.weight(batch.targets)
            self._validation.append((prediction.logits_NL.float().cpu(), batch.targets.cpu(), total.cpu(), weight.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Compute the validation metrics.

        Raises:
            TrainingFailure: if the model's logits are not finite.
        """
        parts = zip(*self._validation, strict=True)
        own = [torch.cat([t.reshape(1) if t.ndim == 0 else t for t in part]).numpy() for part in parts]
        self._validation.clear()
        self.validation_metrics = {}
        gathered = [parts for parts in self._ranks.gather_objects(own) if parts]
        if not gathered:
            return
        logits_NL, targets_NL, totals, weights = (np.concatenate(parts) for parts in zip(*gathered, strict=True))
        if not np.isfinite(logits_NL).all():
            raise TrainingFailure(
                f"logits are not finite in the validation after step {self.trainer.global_step}: training diverged; "
                "a lower optimizer.lr or training.clip, or training.precision fp32, may help"
            )
        if len(logits_NL):
            self.validation_metrics = ranking_metrics(logits_NL, targets_NL, self._recipe.taxonomy.labels)
        if weights.sum() > 0:
            self.validation_metrics["validation/loss"] = float(totals.sum()) / float(weights.sum())


class ShardedTrainingModule(TrainingModule):
    """A safety model in training under FSDP2, which Lightning has sharded in this hook, before the optimizer is built."""

    def configure_model(self) -> None:
        """Replace the weights by this rank's shards; see :mod:`vigil_training.distributed.strategies.fsdp2`."""
        strategy: Any = self.trainer.strategy
        strategy.shard(self.model)


def part_of(name: str) -> str:
    """Return the part of a model that a parameter belongs to: ``text``, ``image`` or ``audio``, ``heads``, else ``fusion``.

    Args:
        name: name of the parameter in the model; a modality's encoder is a part, and its projection belongs to the fusion.
    """
    first, second, *_ = [*name.split("."), ""]
    if first == "encoders":
        return second
    return "heads" if first in ("heads", "experts", "answers", "spans") else "fusion"


def training_module(module: pl.LightningModule) -> TrainingModule:
    """Return ``module``, which Lightning types as any module, as the :class:`TrainingModule` that it is."""
    if not isinstance(module, TrainingModule):
        raise TypeError(f"expected a TrainingModule, not a {type(module).__name__}")
    return module


def monitored_value(module: pl.LightningModule, monitor: str) -> float | None:
    """Return the monitor's value in the last validation; ``None`` if it has none there."""
    value = training_module(module).validation_metrics.get(monitor)
    return None if value is None or math.isnan(value) else value


def ranking_metrics(logits_NL: np.ndarray, targets_NL: np.ndarray, labels: tuple[str, ...]) -> dict[str, float]:
    """Return average precision and AUROC of each label, and their means, by metric name.

    A label whose known targets are all of one class has no value, and does not count in the means. The names are those of
    :func:`vigil_training.recipe.specs.validation_metric_names`.

    Args:
        logits_NL: float ``[N, L]``.
        targets_NL: float ``[N, L]``, NaN where unknown.
        labels: names of the L labels.
    """
    from vigil_evaluation.metrics import auroc, average_precision

    metrics: dict[str, float] = {}
    for name, metric in (("ap", average_precision), ("auroc", auroc)):
        values = {label: metric(targets_NL[:, i], logits_NL[:, i]) for i, label in enumerate(labels)}
        known = {label: value for label, value in values.items() if value is not None}
        metrics |= {f"validation/{name}/{label}": value for label, value in known.items()}
        if known:
            metrics[f"validation/macro_{name}"] = sum(known.values()) / len(known)
    return metrics
