"""The recipe: all that a run does, as one typed value composed of the specs that live beside their components."""

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from vigil_data.items import MODALITIES
from vigil_data.specs import Data, Inputs, Spec
from vigil_data.taxonomy import Taxonomy
from vigil_evaluation.specs import EvaluationSpec
from vigil_modeling.specs import BinaryCrossEntropy, LossSpec, ModelSpec
from vigil_serving.specs import ExportSpec
from vigil_training.recipe.specs import CheckpointSpec, OptimizerSpec, Single, StrategySpec, TrackingSpec, TrainingSpec

RunName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]


class Recipe(Spec):
    """Everything that a run does; ``resolved.yaml`` in the run folder is one of these, written out whole."""

    name: RunName = Field(description="names the run folder and the tracked run")
    seed: int = Field(0, ge=0, lt=2**32, description="of initial weights, the order of rows and dropout")
    taxonomy: Taxonomy
    data: Data
    inputs: Inputs
    model: ModelSpec
    loss: LossSpec = BinaryCrossEntropy()
    optimizer: OptimizerSpec = OptimizerSpec()
    training: TrainingSpec = TrainingSpec()
    strategy: StrategySpec = Single()
    checkpoint: CheckpointSpec = CheckpointSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    export: ExportSpec = ExportSpec()
    tracking: TrackingSpec = TrackingSpec()

    @model_validator(mode="after")
    def _parts_agree(self) -> "Recipe":
        problems = []
        for modality in MODALITIES:
            has_input, has_encoder = (
                getattr(self.inputs, modality) is not None,
                getattr(self.model.encoders, modality) is not None,
            )
            if has_input != has_encoder:
                given, absent = ("inputs", "model.encoders") if has_input else ("model.encoders", "inputs")
                problems.append(f"{given}.{modality} is given but {absent}.{modality} is not")
        for field in ("label_weights", "positive_weights"):
            problems += [
                f"loss.{field}.{name} is not a label of the taxonomy"
                for name in getattr(self.loss, field)
                if name not in self.taxonomy.labels
            ]
        if self.model.fusion.kind == "transformer" and self.model.width % self.model.fusion.heads:
            problems.append(f"model.width {self.model.width} is not a multiple of model.fusion.heads {self.model.fusion.heads}")
        if problems:
            raise ValueError("; ".join(problems))
        return self
