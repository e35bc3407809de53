"""The Lightning data module: training and validation rows of a run, and the loaders over them."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.decode.text_spans import read_spans
from vigil_data.errors import UserError
from vigil_data.items import MODALITIES, Modality, hash_place
from vigil_data.loading.batch import Batch
from vigil_data.loading.loader import EvaluationLoader, Reader, TrainingLoader, evaluation_loader
from vigil_data.loading.sampler import EpochPlan, Resize, Rows, plan, plan_resized
from vigil_data.loading.sampling import SamplingShare, choose_repeats, column_groups, describe_shares
from vigil_data.loading.workers import WorkerChoice, available_cores
from vigil_data.prompts.policy_sampling import PolicySampler
from vigil_modeling.label_structure import LabelStructure
from vigil_modeling.losses import TargetCounts, counted_targets
from vigil_modeling.specs import Contrastive, GuardSpec
from vigil_training.distributed.world import World
from vigil_training.recipe.recipe import Recipe
from vigil_training.runs.prediction_table import dataset_weights
from vigil_training.runs.prompt_order import item_costs
from vigil_training.runs.teacher_scores import TeacherScores
from vigil_training.trainer.lr_scheduler import schedule_position

log = logging.getLogger("vigil.data")

MAX_GROUPS = 100
"""Groups of group DRO; a batch holds few items of each of more."""


class DataModule(pl.LightningDataModule):
    """The rows of a run.

    Args:
        recipe: which rows, and how they become batches.
        version: version of the dataset; a resumed run reads the one it began with.
        tokens: modality to its entry of the token cache, which is complete.
        world: the place of this process among the ranks that share the rows.
        teacher: its scores of the training rows, in distillation.
        resizes: changes of the number of ranks in the run so far.

    Attributes:
        train_rows: row numbers with at least one target that counts in the loss, or two modalities in contrastive pre-training,
            int64 ``[N]``.
        target_counts: known targets of the training split; only for a classifier.
        train_costs: cost of each training row, float64 ``[N]``.
        repeats: expected number of times of each training row in an epoch, float64 ``[N]``; ``None``: each once.
        sampling_shares: what ``data.sampling`` does to the shares of sources and labels.
        group_names: value of ``loss.group_dro.column`` of each group; empty without groups.
        validation_rows: row numbers of the validation split, int64 ``[N]``.
        scored_rows: those of them that the validations of the training score, int64 ``[n]``.
        reader: reads batches of the dataset.

    Raises:
        UserError: if there is nothing to train on, a split does not exist, or a validation row with a known target has no valid
            inclusion probability though the dataset states them.
    """

    def __init__(
        self,
        recipe: Recipe,
        version: int,
        world: World = World(),  # noqa: B008 (immutable)
        tokens: Mapping[Modality, Path] = MappingProxyType({}),
        teacher: TeacherScores | None = None,
        *,
        resizes: Sequence[Resize] = (),
    ) -> None:
        super().__init__()
        self.resizes = tuple(resizes)
        self._recipe = recipe
        self._world = world
        self._teacher = teacher
        self._structure = LabelStructure.of(recipe.model, recipe.taxonomy)
        policies = recipe.model.policies if isinstance(recipe.model, GuardSpec) else None
        self._policies = None if policies is None else PolicySampler(recipe.taxonomy, policies, recipe.seed)
        data, labels = recipe.data, recipe.taxonomy.labels
        dataset = Dataset(Path(data.dataset), version)
        rows = dataset.rows(data.train, data.where)
        self.validation_rows = dataset.rows(data.validation)
        if isinstance(recipe.objective, Contrastive):
            self._choose_paired(dataset, rows)
        else:
            self._choose_labelled(dataset, rows)
        columns = {} if recipe.model.spans is None else recipe.model.spans.columns
        spans = {label: columns[label] for label in labels if label in columns}
        for label, column in spans.items():
            _check_spans(dataset, self.train_rows, label, column)
        self.train_costs, self._validation_costs = item_costs(
            recipe, dataset, recipe.inputs, self.train_rows, self.validation_rows, asked=(self._asked_NL, None)
        )
        self.scored_rows = _choose_scored(dataset, self.validation_rows, recipe.training.validation_items)
        self.reader = Reader(
            dataset.path,
            dataset.version,
            recipe.inputs,
            labels,
            data.augmentation,
            recipe.seed,
            dict(tokens),
            data.shuffle,
            spans,
        )
        self._train: TrainingLoader | None = None
        self._validation: EvaluationLoader | None = None

    def _choose_labelled(self, dataset: Dataset, rows: Rows) -> None:
        """Train on the rows with a target that counts."""
        recipe, data, labels = self._recipe, self._recipe.data, self._recipe.taxonomy.labels
        targets_NL = dataset.targets(labels, rows)
        if self._teacher is not None:
            targets_NL = self._teacher.fill(dataset.table(["id"], rows).column("id").to_pylist(), targets_NL)
        unlabeled_L = np.isin(labels, list(recipe.loss.unlabeled))
        counts_NL = counted_targets(targets_NL, ~np.isnan(targets_NL), unlabeled_L, self._structure)
        self.train_rows = rows[counts_NL.any(axis=1)]
        read_NL = self._structure.read_by_loss(targets_NL, self._teacher is not None)
        self._asked_NL: NDArray[np.bool_] | None = read_NL[counts_NL.any(axis=1)]
        self.target_counts = TargetCounts((targets_NL >= 0.5).sum(axis=0), (targets_NL < 0.5).sum(axis=0))
        if not len(self.train_rows):
            condition = f" where {data.where}" if data.where else ""
            splits = ", ".join(f"{split} {count}" for split, count in dataset.splits().items()) or "none"
            raise UserError(
                f"{data.dataset}: split {data.train}{condition} has no item with a known target of {', '.join(labels)}; "
                f"the dataset's splits: {splits}; its labels: {', '.join(dataset.labels) or 'none'}"
            )
        left_out = len(rows) - len(self.train_rows)
        log.info("training on %d items; %d have no known target and are left out", len(self.train_rows), left_out)
        for label in set(labels) - set(dataset.labels):
            log.info("label %s is unknown for every item: the dataset does not have it", label)
        weights_L = np.array([recipe.loss.label_weights.get(label, 1.0) for label in labels])
        self._weights = counts_NL[counts_NL.any(axis=1)] @ weights_L
        self._choose_repeats(dataset, targets_NL[counts_NL.any(axis=1)])
        self.group_names, self._groups = _groups(dataset, recipe, self.train_rows)
        # Calibration, after training, needs the weights of these rows: what is wrong with them is refused before.
        dataset_weights(dataset, dataset.targets(labels, self.validation_rows), rows=self.validation_rows)

    def _choose_paired(self, dataset: Dataset, rows: Rows) -> None:
        """Train and validate on the rows with two modalities of the recipe or more, whatever their targets."""
        names, columns = self._recipe.modalities, [MODALITIES.index(modality) for modality in self._recipe.modalities]
        chosen = []
        for split, of in ((self._recipe.data.train, rows), (self._recipe.data.validation, self.validation_rows)):
            chosen.append(of[(dataset.facts(of)[:, columns] > 0).sum(axis=1) >= 2])
            if not len(chosen[-1]):
                raise UserError(f"{dataset.path}: split {split} has no item with two of {', '.join(names)}, which are compared")
        self.train_rows, self.validation_rows = chosen
        left_out = len(rows) - len(self.train_rows)
        log.info("training on %d items; %d have one modality and are left out", len(self.train_rows), left_out)
        self._weights = np.ones(len(self.train_rows))
        self._choose_repeats(dataset, None)
        self.group_names, self._groups, self._asked_NL = (), None, None

    def _choose_repeats(self, dataset: Dataset, targets_NL: NDArray[np.float32] | None) -> None:
        """Decide how often each training row is read, and what share of an epoch each source and label gets."""
        self.repeats: NDArray[np.float64] | None = None
        self.sampling_shares: tuple[SamplingShare, ...] = ()
        if (spec := self._recipe.data.sampling) is not None:
            labels = self._recipe.taxonomy.labels
            self.repeats, self.sampling_shares = choose_repeats(spec, dataset, self.train_rows, labels, targets_NL)
            log.info("an epoch draws %d of %d items", round(float(self.repeats.sum())), len(self.train_rows))
            for line in describe_shares(self.sampling_shares):
                log.info("%s", line)

    def plan(self, epoch: int, resizes: int | None = None) -> EpochPlan:
        """Return the batches of ``epoch``.

        Args:
            epoch: counted from 0.
            resizes: number of the run's changes of the number of ranks before the plan was made (default: all).
        """
        recipe, data = self._recipe, self._recipe.data
        worlds = [*(change.world for change in self.resizes), self._world.size]
        count = len(self.resizes) if resizes is None else resizes

        def make(epoch: int, world: int) -> EpochPlan:
            options: dict[str, Any] = {"repeats": self.repeats, "shuffle": data.shuffle, "rows": self.train_rows}
            return plan(self.train_costs, data.batch, recipe.seed, epoch, world, **options)

        return plan_resized(make, self.train_costs, recipe.seed, epoch, world=worlds[count], resizes=self.resizes[:count])

    def total_steps(self) -> int:
        """Return the optimizer steps of the run, unless early stopping ends it before."""
        return self.epoch_ends()[-1]

    def epoch_ends(self, resizes: int | None = None, *, whole: bool = False) -> list[int]:
        """Return the optimizer steps of the run at the end of each of its epochs.

        Args:
            resizes: see :meth:`plan`.
            whole: count the last epoch to its end, even if ``training.max_steps`` ends the run in it.
        """
        training, ends = self._recipe.training, list[int]()
        for epoch in range(training.epochs):
            ends.append((ends[-1] if ends else 0) + math.ceil(self.plan(epoch, resizes).steps / training.accumulate))
            if training.max_steps is not None and ends[-1] >= training.max_steps:
                return ends if whole else [*ends[:-1], training.max_steps]
        return ends

    def lr_position(self) -> Callable[[int], float] | None:
        """Return the function from an optimizer step to its place in the schedule with which the run began.

        A run that continues with another number of ranks has more or fewer steps left; they take the rest of the schedule.
        ``None`` if the number has not changed.
        """
        if not self.resizes:
            return None
        starts, totals = [0], [self.epoch_ends(0)[-1]]
        for count, change in enumerate(self.resizes):
            before = self.epoch_ends(count)[: change.epoch]
            starts.append((before[-1] if before else 0) + math.ceil(change.step / self._recipe.training.accumulate))
            totals.append(self.epoch_ends(count + 1)[-1])
        return schedule_position(starts, totals)

    def train_dataloader(self) -> TrainingLoader:
        """Return this rank's loader at its epoch; Lightning asks before each epoch, as they differ in their number of batches."""
        if self.trainer is None:
            raise RuntimeError("the data module is not in a trainer")
        if self._train is None:
            recipe, workers = self._recipe, self._recipe.data.workers
            self._train = TrainingLoader(
                self.reader,
                self.train_rows,
                self._weights,
                self.plan,
                rank=self._world.rank,
                accumulate=recipe.training.accumulate,
                groups=self._groups,
                resizes=self.resizes,
                workers=WorkerChoice(available_cores(self._world.local_size)) if workers == "auto" else workers,
                worker_start=recipe.data.worker_start,
                pin_memory=self.trainer.strategy.root_device.type == "cuda",
            )
        self._train.set_epoch(self.trainer.current_epoch)
        return self._train

    def val_dataloader(self) -> EvaluationLoader:
        """Return the loader of the rows that validations score, which gives the same batches each time."""
        if self._validation is None:
            self._validation = self._evaluation_loader(self.scored_rows)
        return self._validation

    def calibration_dataloader(self) -> EvaluationLoader:
        """Return the loader of all validation rows."""
        whole = len(self.scored_rows) == len(self.validation_rows)
        return self.val_dataloader() if whole else self._evaluation_loader(self.validation_rows)

    def _evaluation_loader(self, rows: Rows) -> EvaluationLoader:
        data = self._recipe.data
        return evaluation_loader(
            self.reader,
            rows,
            self._validation_costs[np.isin(self.validation_rows, rows)],
            data.batch,
            rank=self._world.rank,
            world=self._world.size,
            local_ranks=self._world.local_size,
            workers=data.workers,
            worker_start=data.worker_start,
        )

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Complete a training batch.

        A teacher's probabilities are added, and fill unknown targets. In training on policies, the questions are drawn.
        """
        del dataloader_idx
        if self.trainer is None or not self.trainer.training:
            return batch
        if self._teacher is not None:
            targets_NL = torch.from_numpy(self._teacher.fill(batch.ids, batch.targets.numpy()))
            batch = replace(batch, targets=targets_NL, teacher=torch.from_numpy(self._teacher.probabilities(batch.ids)))
        if self._policies is not None:
            asked_NL = self._structure.read_by_loss(batch.targets.numpy(), distills=self._teacher is not None)
            epoch = self.trainer.current_epoch
            batch = replace(batch, questions=self._policies.questions(batch.ids, batch.targets.numpy(), epoch, asked_NL))
        return batch

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Return the batch on ``device``."""
        del dataloader_idx
        return batch if device.type == "cpu" else batch.to(device, non_blocking=True)


def _choose_scored(dataset: Dataset, rows: Rows, count: int | None) -> Rows:
    """Choose at most ``count`` rows by a hash of their ids: every run of a dataset scores the same items."""
    if count is None or count >= len(rows):
        return rows
    places_N = [hash_place(f"scored in validation:{id_}") for id_ in dataset.table(["id"], rows).column("id").to_pylist()]
    log.info("validations score %d of %d items", count, len(rows))
    return rows[np.sort(np.argsort(places_N, kind="stable")[:count])]


def _check_spans(dataset: Dataset, rows: Rows, label: str, column: str) -> None:
    """Check that training items have spans of a label.

    Raises:
        UserError: if the column does not exist, has no value, or has one that is not a list of spans.
    """
    where = f"model.spans.columns.{label}: {dataset.path}"
    if column not in dataset.columns:
        have = ", ".join(dataset.columns)
        raise UserError(f"{where} has no column {column} (it has {have}); `vigil data import toxic_spans` makes toxic_spans")
    table = dataset.table(["id", column], rows)
    values = dict(zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True))
    known = {id_: value for id_, value in values.items() if value is not None}
    if not known:
        raise UserError(f"{where}: column {column} has no spans for any of the {len(rows)} training items")
    for id_, value in known.items():
        try:
            read_spans(value)
        except ValueError as error:
            raise UserError(f"{where}: item {id_}: column {column}: {error}") from None
    log.info("label %s has spans in %d of %d training items", label, len(known), len(rows))


def _groups(dataset: Dataset, recipe: Recipe, rows: Rows) -> tuple[tuple[str, ...], Rows | None]:
    """Return the names of the groups of group DRO, and the group of each row.

    Raises:
        UserError: if the column does not exist, or its values are one group, or too many.
    """
    if recipe.loss.group_dro is None:
        return (), None
    column = recipe.loss.group_dro.column
    names, group_N = column_groups(dataset, column, rows, "loss.group_dro.column")
    if not 2 <= len(names) <= MAX_GROUPS:
        raise UserError(
            f"loss.group_dro.column: {column} has {len(names)} value{'s' * (len(names) > 1)} in the {len(rows)} training items; "
            f"group DRO takes 2 to {MAX_GROUPS} groups"
        )
    log.info("group DRO over %s: %s", column, ", ".join(f"{n} {c}" for n, c in zip(names, np.bincount(group_N), strict=True)))
    return names, group_N
