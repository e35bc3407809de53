"""Export section of a recipe: formats, opset, and what quantization may cost."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from vigil_data.errors import UserError
from vigil_data.specs import Spec
from vigil_serving.bundle.metadata import Tolerance

Format = Literal["onnx", "onnx-single", "torchscript", "torch-export", "fp16", "bf16", "int8"]

DEFAULT_FORMATS: tuple[Format, ...] = ("onnx", "onnx-single", "torchscript")
GUARD_FORMATS: tuple[Format, ...] = ("onnx", "fp16", "int8")

OPSET = 23
"""Default ONNX opset."""
OPSETS = (18, 23)
"""Lowest opset that torch writes, and highest that was tested with ONNX Runtime."""


class Int8Spec(Spec):
    """Quantization of the encoders to 8 bits, and what it may cost; the fusion stays in float32."""

    max_ap_loss: float = Field(
        0.005, ge=0, le=1, description="largest loss of any label's average precision on the real examples; a gain is not a loss"
    )
    max_flips: float = Field(0.01, ge=0, le=1, description="largest share of the decisions on the real examples that may differ")
    max_difference: float = Field(
        0.5,
        gt=0,
        le=1,
        description="largest change of any raw probability, including on the gate's synthetic extremes; it grows with the number "
        "of items, so it detects broken graphs, while max_flips limits inexact ones",
    )
    examples: int = Field(
        2048,
        ge=0,
        description="real items of the validation split on which the loss is measured, in addition to export.examples; with few "
        "positives an average precision is mostly chance",
    )
    calibration_items: int = Field(
        256, ge=1, description="items of the validation split on which static quantization finds ranges and speed is measured"
    )
    enough: int = Field(
        10, ge=1, description="a label with fewer known positives or negatives among the examples has no average precision"
    )
    reduce_range: bool = Field(
        False, description="7-bit weights: more exact on CPUs without VNNI, whose sums of 8-bit products saturate"
    )
    required: bool = Field(
        True, description="fail if a requested int8 variant is out of tolerance; false: write the bundle without it"
    )

    def tolerance(self) -> Tolerance:
        """Return the allowed deviation of the int8 variant."""
        return Tolerance(self.max_difference, self.max_flips, self.max_ap_loss)


class ExportSpec(Spec):
    """What ``vigil export`` writes; its options override this section."""

    formats: tuple[Format, ...] | None = Field(
        None,
        description="formats in addition to the ONNX encoders and fusion, which are always written: onnx-single, torchscript, "
        "torch-export, fp16 and int8 (ONNX encoders), bf16 (torch.export); null: onnx-single and torchscript, and none for a "
        "guard, which has fp16 and int8 only",
    )
    opset: int = Field(OPSET, ge=OPSETS[0], le=OPSETS[1], description="ONNX opset")
    examples: int = Field(
        256,
        ge=0,
        description="real items of the validation split on which every format is compared, besides synthetic ones",
    )
    int8: Int8Spec = Int8Spec()
    licences: Mapping[Literal["text", "image", "audio", "tokenizer"], str] = Field(
        default_factory=dict,
        description="licences of weights, as SPDX names, where neither package nor model card states them",
    )

    @field_validator("formats")
    @classmethod
    def _each_once(cls, formats: tuple[Format, ...] | None) -> tuple[Format, ...] | None:
        return None if formats is None else tuple(dict.fromkeys(("onnx", *formats)))

    def has(self, name: Format) -> bool:
        """Whether a format is to be written."""
        return name in (DEFAULT_FORMATS if self.formats is None else self.formats)

    def for_model(self, *, guard: bool) -> "ExportSpec":
        """Return the settings with the formats of a guard, or of a fusion model.

        Raises:
            UserError: if a format is not one of a guard.
        """
        if guard and (problem := self.guard_problem()) is not None:
            raise UserError(f"formats: {problem}")
        default = GUARD_FORMATS[:1] if guard else DEFAULT_FORMATS
        return self if self.formats is not None else self.model_copy(update={"formats": default})

    def guard_problem(self) -> str | None:
        """Return why a guard cannot be exported in the formats; ``None`` if it can."""
        refused = [name for name in self.formats or () if name not in GUARD_FORMATS]
        return f"{', '.join(refused)}: a guard is exported as onnx, fp16 and int8; leave the others out" if refused else None
