"""Encoders: one contract, one builder, an explicit table from spec class to constructor."""

from collections.abc import Callable, Mapping
from typing import Any

from vigil_data.items import Modality
from vigil_data.specs import Inputs
from vigil_modeling.encoders.base import Encoder, freeze, set_mode
from vigil_modeling.encoders.image import build_image
from vigil_modeling.encoders.log_mel import build_mel
from vigil_modeling.encoders.text import build_text
from vigil_modeling.encoders.transformers_audio import build_transformers_audio
from vigil_modeling.specs import EncoderSpec, MelTimmAudio, TimmImage, TransformersAudio, TransformersText

__all__ = ["Encoder", "build_encoder", "freeze", "set_mode"]

CONSTRUCTORS: Mapping[type[EncoderSpec], Callable[[Any, Any, bool], Encoder]] = {
    TransformersText: build_text,
    TimmImage: build_image,
    MelTimmAudio: build_mel,
    TransformersAudio: build_transformers_audio,
}


def build_encoder(modality: Modality, spec: EncoderSpec, inputs: Inputs, load_weights: bool = True) -> Encoder:
    """Build the encoder of one modality.

    Args:
        modality: which of the inputs it takes.
        spec: what the recipe says under ``model.encoders``.
        inputs: how media are decoded; sizes and rates come from here.
        load_weights: false builds the architecture alone (its configuration is still read), for a checkpoint to be loaded into.

    Raises:
        UserError: the architecture or its weights are not to be had, or do not agree with the inputs.
    """
    return CONSTRUCTORS[type(spec)](spec, getattr(inputs, modality), load_weights)
