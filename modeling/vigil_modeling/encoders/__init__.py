"""Encoders of text, images and audio behind one interface, and the table from spec class to constructor."""

from collections.abc import Callable, Mapping
from typing import Any

from vigil_data.items import MODALITIES, Modality
from vigil_data.specs import Inputs
from vigil_modeling.encoders.audio.log_mel import build_mel
from vigil_modeling.encoders.audio.speech_embedding import build_speech_embedding
from vigil_modeling.encoders.audio.transformers_audio import build_transformers_audio
from vigil_modeling.encoders.base import Encoder, freeze, set_mode, tokens_per_segment
from vigil_modeling.encoders.decoder_text import build_decoder
from vigil_modeling.encoders.frozen_storage import store_frozen_in_bf16, store_frozen_in_nf4
from vigil_modeling.encoders.lora import add_lora
from vigil_modeling.encoders.timm_image import build_image
from vigil_modeling.encoders.transformers_text import build_text
from vigil_modeling.specs import (
    DecoderText,
    Encoders,
    EncoderSpec,
    GuardEncoders,
    MelTimmAudio,
    SpeechEmbeddingAudio,
    TimmImage,
    TransformersAudio,
    TransformersText,
)

__all__ = [
    "Encoder",
    "build_encoder",
    "build_encoders",
    "freeze",
    "set_mode",
    "store_frozen_in_bf16",
    "store_frozen_in_nf4",
    "tokens_per_segment",
]

CONSTRUCTORS: Mapping[type[EncoderSpec], Callable[[Any, Any, bool], Encoder]] = {
    TransformersText: build_text,
    DecoderText: build_decoder,
    TimmImage: build_image,
    MelTimmAudio: build_mel,
    TransformersAudio: build_transformers_audio,
    SpeechEmbeddingAudio: build_speech_embedding,
}


def build_encoder(modality: Modality, spec: EncoderSpec, inputs: Inputs, load_weights: bool = True) -> Encoder:
    """Build the encoder of one modality.

    Args:
        modality: the modality.
        spec: the encoder's keys in the recipe.
        inputs: how media are decoded, with sizes and sample rates.
        load_weights: false builds only the architecture, for a checkpoint to be loaded; its configuration is still read.

    Raises:
        UserError: if the architecture or its weights are not available or do not match the inputs.
    """
    encoder = CONSTRUCTORS[type(spec)](spec, getattr(inputs, modality), load_weights)
    if spec.lora is not None:
        add_lora(encoder, spec.lora, f"model.encoders.{modality}")
    return encoder


def build_encoders(spec: Encoders | GuardEncoders, inputs: Inputs, load_weights: bool = True) -> dict[Modality, Encoder]:
    """Build the encoder of each modality of a recipe; see :func:`build_encoder`."""
    encoders: dict[Modality, Encoder] = {}
    for modality in MODALITIES:
        encoder_spec = getattr(spec, modality)
        if encoder_spec is not None:
            encoders[modality] = build_encoder(modality, encoder_spec, inputs, load_weights)
    return encoders
