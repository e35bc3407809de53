"""What a recipe can say about evaluation."""

from pydantic import Field

from vigil_data.specs import Spec


class EvaluationSpec(Spec):
    """How thresholds are chosen and what the report slices by."""

    false_positive_rate: float = Field(0.01, gt=0, lt=1, description="the rate at which recall is reported")
    slices: tuple[str, ...] = Field(
        (), description="columns of the dataset by which the report breaks its numbers down, beside the modalities present"
    )
