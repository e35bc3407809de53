"""What a recipe can say about its export: forms, opset, and what quantisation may cost."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from vigil_data.specs import Spec

Format = Literal["onnx", "onnx-single", "torchscript", "torch-export", "fp16", "bf16", "int8"]

OPSET = 23
"""Of the ONNX graphs, unless another one is asked for."""
OPSETS = (18, 23)
"""The least that torch writes, and the most that was tried with ONNX Runtime."""


class Int8Spec(Spec):
    """Quantisation of the encoders to 8 bits, and what it may cost; the fusion stays in float32."""

    max_ap_loss: float = Field(
        0.005, ge=0, le=1, description="largest loss of any label's average precision on the real examples; a gain is no loss"
    )
    max_flips: float = Field(0.01, ge=0, le=1, description="largest share of the decisions on the real examples that may differ")
    max_difference: float = Field(
        0.5,
        gt=0,
        le=1,
        description="largest change of any raw probability, over the gate's made-up extremes too; it grows with the number of "
        "items, so it guards against what is broken and max_flips against what is inexact",
    )
    examples: int = Field(
        2048,
        ge=0,
        description="real items of the validation split on which its loss is measured beside export.examples; few positives make "
        "an average precision that is mostly chance",
    )
    calibration_items: int = Field(
        256, ge=1, description="items of the validation split by which ranges of static quantisation are found and speed measured"
    )
    enough: int = Field(
        10, ge=1, description="a label with fewer known positives or negatives among the examples has no average precision"
    )
    reduce_range: bool = Field(
        False, description="weights of 7 bits: more exact on CPUs without VNNI, whose sums of 8-bit products saturate"
    )
    required: bool = Field(
        True, description="an asked-for int8 form out of tolerance is an error; false: the bundle is written without it"
    )


class ExportSpec(Spec):
    """What ``vigil export`` makes; its options override this."""

    formats: tuple[Format, ...] = Field(
        ("onnx", "onnx-single", "torchscript"),
        description="forms beside the ONNX encoders and fusion, which are always made: onnx-single, torchscript, torch-export, "
        "fp16 and int8 (ONNX encoders), bf16 (torch.export)",
    )
    opset: int = Field(OPSET, ge=OPSETS[0], le=OPSETS[1], description="of the ONNX graphs")
    examples: int = Field(
        256, ge=0, description="real items of the validation split that every form is compared on, beside the made-up ones"
    )
    int8: Int8Spec = Int8Spec()
    licences: Mapping[Literal["text", "image", "audio", "tokenizer"], str] = Field(
        default_factory=dict,
        description="licences of weights, as SPDX names, where neither package nor model card states them",
    )

    @field_validator("formats")
    @classmethod
    def _each_once(cls, formats: tuple[Format, ...]) -> tuple[Format, ...]:
        return tuple(dict.fromkeys(("onnx", *formats)))
