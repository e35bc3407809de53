"""The recipe: everything that a run does, as one typed value composed of the specs of its components."""

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from vigil_data.augmentation.specs import MP3_RATES
from vigil_data.items import MODALITIES, Modality
from vigil_data.loading.location import is_remote
from vigil_data.specs import Data, Inputs, Spec
from vigil_data.taxonomy import Taxonomy
from vigil_data.yaml_files.yaml_tree import nearest
from vigil_evaluation.specs import EvaluationSpec
from vigil_modeling.input_checks import find_fusion_problems, find_guard_problems, find_input_problems
from vigil_modeling.specs import (
    AnyModelSpec,
    BinaryCrossEntropy,
    Classification,
    Contrastive,
    GuardSpec,
    LossSpec,
    ModelSpec,
    ObjectiveSpec,
)
from vigil_serving.specs import ExportSpec
from vigil_training.recipe.specs import (
    CheckpointSpec,
    DeepSpeed,
    Distillation,
    FullySharded,
    InitFromSpec,
    OptimizerSpec,
    Ranks,
    Single,
    StrategySpec,
    TrackingSpec,
    TrainingSpec,
    retrieval_metric_names,
    validation_metric_names,
)

RunName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]


class Recipe(Spec):
    """Everything that a run does; ``resolved.yaml`` in the run folder is one, with every default written out."""

    name: RunName = Field(description="names the run folder and the tracked run")
    seed: int = Field(0, ge=0, lt=2**32, description="of initial weights, the order of rows and dropout")
    taxonomy: Taxonomy
    data: Data
    inputs: Inputs
    model: AnyModelSpec
    init_from: InitFromSpec | None = Field(
        None,
        description="trained model to take weights from: the path of a run, checkpoint or bundle, or a block with options; or a "
        "list of them, in which a later one replaces what an earlier one gave",
    )
    objective: ObjectiveSpec = Classification()
    loss: LossSpec = BinaryCrossEntropy()
    distillation: Distillation | None = Field(None, description="train on the scores of a teacher; null: on the targets alone")
    optimizer: OptimizerSpec = OptimizerSpec()
    training: TrainingSpec = TrainingSpec()
    strategy: StrategySpec = Single()
    checkpoint: CheckpointSpec = CheckpointSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    export: ExportSpec = ExportSpec()
    tracking: TrackingSpec = TrackingSpec()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities of the model."""
        return tuple(modality for modality in MODALITIES if getattr(self.model.encoders, modality) is not None)

    @model_validator(mode="after")
    def _blocks_agree(self) -> "Recipe":
        """Check what concerns several blocks; each line starts with the key that is at fault."""
        problems = [*self._modality_problems(), *self._augmentation_problems(), *self._label_problems(), *self._part_problems()]
        problems += [*self._averaging_problems(), *self._storage_problems()]
        problems += [*self._objective_problems(), *self._cache_problems(), *self._distillation_problems()]
        problems += find_fusion_problems(self.model) if isinstance(self.model, ModelSpec) else self._guard_problems(self.model)
        problems += find_input_problems(self.model.encoders, self.inputs)
        problems += [*self._speed_problems(), *self._reading_problems()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _modality_problems(self) -> Iterator[str]:
        for modality in MODALITIES:
            has_input = getattr(self.inputs, modality) is not None
            has_encoder = getattr(self.model.encoders, modality) is not None
            if has_input != has_encoder:
                given, absent = ("inputs", "model.encoders") if has_input else ("model.encoders", "inputs")
                yield f"{given}.{modality} is given but {absent}.{modality} is not"
            if modality in self.training.modality_dropout and not has_encoder:
                yield f"training.modality_dropout.{modality}: the model has no encoder of {modality}"
        if self.training.modality_dropout and sum(getattr(self.inputs, modality) is not None for modality in MODALITIES) == 1:
            yield "training.modality_dropout: the model has one modality, which is never hidden; leave this out"

    def _objective_problems(self) -> Iterator[str]:
        if isinstance(self.objective, Contrastive):
            if len(self.modalities) < 2:
                yield "objective: contrastive pre-training needs inputs and encoders of two modalities or more"
            if self.loss != BinaryCrossEntropy():
                yield "loss: contrastive pre-training has no targets; leave this out"
            if self.model.spans is not None:
                yield "model.spans: contrastive pre-training has no targets; leave this out"
            if isinstance(self.model, ModelSpec) and self.model.auxiliary_heads is not None:
                yield "model.auxiliary_heads: contrastive pre-training has no targets; leave this out"
            if self.training.modality_dropout:
                yield "training.modality_dropout: contrastive pre-training compares the modalities of an item; leave this out"
            if isinstance(self.strategy, FullySharded):
                yield "strategy.kind: contrastive pre-training has a loss with weights, which fsdp2 does not shard; take ddp"

    def _guard_problems(self, model: GuardSpec) -> Iterator[str]:
        yield from find_guard_problems(model, self.inputs, self.taxonomy)
        if (problem := self.export.guard_problem()) is not None:
            yield f"export.formats: {problem}"
        if isinstance(self.objective, Contrastive):
            yield "objective.kind: contrastive pre-training has encoders that are compared; a guard learns labels"
        if model.policies is not None and model.policies.composites and self.loss.group_dro is not None:
            yield "loss.group_dro: weighs groups by their loss on labels; leave it or model.policies.composites out"
        if self.loss.unlabeled:
            yield "loss.unlabeled: a guard is asked nothing about unknown targets in training; leave this out"
        if self.training.compile:
            yield "training.compile: the rows of a guard's prompts differ in each batch, so it is not compiled; leave this out"

    def _cache_problems(self) -> Iterator[str]:
        frozen = [m for m in self.modalities if getattr(self.model.encoders, m).frozen is True and m not in self.model.uncached]
        if not self.training.token_cache:
            return
        if not frozen:
            yield "training.token_cache: no encoder has frozen: true, and others change; freeze one, or leave this out"
        if isinstance(self.strategy, DeepSpeed) and self.strategy.stage == 3:
            yield "training.token_cache: the ranks of strategy.stage 3 gather weights in another order; take stage 2 or ddp"
        augmented = () if self.data.augmentation is None else self.data.augmentation.changes
        for modality in set(frozen) & set(augmented):
            yield f"training.token_cache: data.augmentation.{modality} changes what the frozen encoder reads; leave one out"

    def _averaging_problems(self) -> Iterator[str]:
        if (ema := self.training.ema) is None:
            return
        strategy, max_steps = self.strategy, self.training.max_steps
        if isinstance(strategy, DeepSpeed) and "nvme" in (strategy.offload_optimizer, strategy.offload_parameters):
            yield "training.ema: weights on nvme cannot be averaged; offload to cpu, or leave this out"
        if max_steps is not None and ema.start_step >= max_steps:
            yield f"training.ema.start_step: {ema.start_step} is not below training.max_steps, {max_steps}: nothing is averaged"

    def _augmentation_problems(self) -> Iterator[str]:
        if self.data.augmentation is None:
            return
        changes = self.data.augmentation.changes
        if not changes:
            yield "data.augmentation: changes nothing; name a change, or leave it out"
        for modality in changes:
            if getattr(self.inputs, modality) is None:
                yield f"data.augmentation.{modality}: the model does not read {modality}"
        codec, audio = self.data.augmentation.audio.codec, self.inputs.audio
        if codec is not None and "mp3" in codec.formats and audio is not None and audio.rate not in MP3_RATES:
            yield (
                f"data.augmentation.audio.codec.formats: MP3 has no sample rate of {audio.rate} Hz (inputs.audio.rate); "
                f"it has {', '.join(map(str, MP3_RATES))}"
            )

    def _distillation_problems(self) -> Iterator[str]:
        if self.distillation is None:
            return
        if self.objective.kind != "classification":
            yield "distillation: contrastive pre-training learns no labels; leave one of them out"
        if self.loss.unlabeled:
            yield "loss.unlabeled: distillation has another rule for unknown targets, fill_unknown; leave one of them out"
        if self.loss.group_dro is not None:
            yield "loss.group_dro: weighs groups by their loss on targets, which distillation replaces in part; leave one out"
        filled = self.distillation.fill_unknown
        for label in () if filled is None else filled.labels:
            if label not in self.taxonomy.labels:
                hint = nearest(label, self.taxonomy.labels)
                yield f"distillation.fill_unknown.labels.{label} is not a label of the taxonomy{hint}"

    def _part_problems(self) -> Iterator[str]:
        modalities = [modality for modality in MODALITIES if getattr(self.model.encoders, modality) is not None]
        known: dict[str, list[str] | None] = {"encoders": list(modalities), "projections": list(modalities)}
        if isinstance(self.model, GuardSpec):
            known |= {"projections": [m for m in modalities if m != "text"], "answers": None}
        else:
            known |= {"position": None, "fusion": None, "heads": [*self.taxonomy.heads]}
        if self.model.spans is not None:
            known["spans"] = None
        for part in (part for source in self.init_from or () for part in source.parts):
            first, _, rest = part.partition(".")
            if first not in known:
                yield f"init_from.parts: {part} is not a part of a model: {', '.join(known)}{nearest(first, list(known))}"
            elif rest and (inside := known[first]) is not None and (name := rest.split(".")[0]) not in inside:
                yield f"init_from.parts: {part}: the model's {first} are {', '.join(inside)}{nearest(name, inside)}"

    def _storage_problems(self) -> Iterator[str]:
        for modality in MODALITIES:
            encoder = getattr(self.model.encoders, modality)
            if encoder is not None and encoder.unfreeze is not None and isinstance(self.strategy, FullySharded):
                yield f"model.encoders.{modality}.unfreeze: strategy fsdp2 cannot hold layers; take ddp or deepspeed"
            if encoder is None or encoder.frozen_dtype == "fp32":
                continue
            where = f"model.encoders.{modality}.frozen_dtype"
            if isinstance(self.strategy, FullySharded):
                yield f"{where}: strategy fsdp2 shards frozen weights already, in fp32; leave this out"
            if isinstance(self.strategy, DeepSpeed) and self.strategy.stage == 3:
                yield f"{where}: strategy.stage 3 shards frozen weights already, in fp32; leave this out, or take stage 2"
            if encoder.frozen_dtype == "nf4":
                if isinstance(self.strategy, DeepSpeed):
                    yield f"{where}: nf4 is not tried with deepspeed; take strategy single or ddp, or bf16"
                if self.training.accelerator != "cuda":
                    yield f"{where}: nf4 needs a GPU, for bitsandbytes; set training.accelerator to cuda, or take bf16"
                if self.training.precision != "bf16":
                    yield f"{where}: nf4 computes in bf16; set training.precision to bf16"
            elif encoder.lora is not None and self.training.precision != "bf16":
                yield f"{where}: with lora, fp32 copies would be kept for the backward pass; set training.precision to bf16"

    def _speed_problems(self) -> Iterator[str]:
        profile, last = self.training.profile, self.training.max_steps
        if profile is not None and last is not None and profile.start >= last:
            yield f"training.profile.start is {profile.start}, but training.max_steps ends the run after {last} steps"
        strategy = self.strategy
        gathers = "FSDP2" if isinstance(strategy, FullySharded) else "ZeRO-3" if getattr(strategy, "stage", 0) == 3 else None
        if self.training.compile and gathers:
            yield f"training.compile: {gathers} gathers weights within the encoders, so they are not compiled; take ddp or ZeRO-2"

    def _reading_problems(self) -> Iterator[str]:
        sampling = self.data.sampling
        if sampling is not None and sampling.repeat_threshold is not None and isinstance(self.objective, Contrastive):
            yield "data.sampling.repeat_threshold: contrastive pre-training reads no labels; leave this out"
        if self.training.resume_world == "repartition" and not isinstance(self.strategy, Ranks):
            yield "training.resume_world: strategy single has one process; take ddp (devices: 1 is allowed), or leave this out"
        if is_remote(self.data.dataset) and self.training.token_cache:
            yield f"training.token_cache: it is written next to the dataset, and {self.data.dataset} is only read; leave this out"

    def _label_problems(self) -> Iterator[str]:
        labels = self.taxonomy.labels
        properties = {label: each for head in self.taxonomy.heads.values() for label, each in head.labels.items()}
        if self.model.hierarchy and all(each.parent is None for each in properties.values()):
            yield "model.hierarchy: no label of the taxonomy has a parent; name parents there, or leave this out"
        for name in self.model.ordinal_heads if isinstance(self.model, ModelSpec) else ():
            if name not in self.taxonomy.heads:
                yield f"model.ordinal_heads: {name} is not a head of the taxonomy{nearest(name, list(self.taxonomy.heads))}"
                continue
            ranks = set(self.taxonomy.heads[name].labels)
            for label in sorted(ranks & set(self.loss.unlabeled)):
                yield f"loss.unlabeled.{label} is a rank of the ordinal head {name}; ranks are learned from known targets"
            if self.model.hierarchy:
                for label in (x for x, each in properties.items() if each.parent is not None and {x, each.parent} & ranks):
                    yield f"model.hierarchy: {label} or its parent is a rank of the ordinal head {name}; leave one of them out"
        named: dict[str, Iterable[str]] = {f: getattr(self.loss, f) for f in ("label_weights", "positive_weights", "unlabeled")}
        named = {f"loss.{field}": names for field, names in named.items()}
        named["model.spans.columns"] = () if self.model.spans is None else self.model.spans.columns
        for where, names in named.items():
            for name in names:
                if name not in labels:
                    yield f"{where}.{name} is not a label of the taxonomy{nearest(name, labels)}"
        monitor, metrics = self.training.monitor, validation_metric_names(labels)
        if isinstance(self.objective, Contrastive):
            metrics = retrieval_metric_names(self.modalities)
        if monitor not in metrics:
            hint = nearest(monitor, metrics) or f"; the metrics are {', '.join(metrics)}"
            yield f"training.monitor: {monitor!r} is not a metric of the validation{hint}"
