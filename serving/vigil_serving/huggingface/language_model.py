"""A guard's language model in transformers' own class, with adapters merged and the complete output layer."""

from typing import Any

import torch

from vigil_data.errors import UserError
from vigil_modeling.encoders.decoder_weights import build_decoder_config, output_reader
from vigil_modeling.encoders.transformers_common import quiet
from vigil_modeling.guards.guard_model import GuardModel
from vigil_modeling.specs import DecoderText, Random

WHERE = "model.encoders.text"


def causal_language_model(guard: GuardModel, spec: DecoderText) -> Any:
    """Return the language model of a guard, in float32.

    The two answers' rows of its output layer are the trained ones, so the layer is not tied to the embeddings; its other rows are
    those of the weights that training started from.

    Args:
        guard: from :func:`vigil_serving.export.modules.inference_network`, its adapters merged.
        spec: the recipe's text encoder.

    Raises:
        UserError: if the architecture has no output layer that holds the answers, or its weights are no longer available.
    """
    from transformers import AutoModelForCausalLM

    encoder = guard.language_model
    config = build_decoder_config(spec, WHERE)
    untied = type(config).from_dict({**config.to_dict(), "tie_word_embeddings": False})
    with quiet():
        model = AutoModelForCausalLM.from_config(untied, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
    body, output = getattr(model, model.base_model_prefix), model.get_output_embeddings()
    answers = guard.answers
    if answers.bias is not None and output.bias is None:
        raise UserError(f"{WHERE}: {type(model).__name__} has an output layer without bias, but the guard's has one")
    with torch.no_grad():
        body.load_state_dict(encoder.model.state_dict())
        read = output_reader(spec, config, load_weights=True)
        if read is None:
            output.weight.copy_(body.get_input_embeddings().weight)
        elif isinstance(spec.weights, Random):
            output.weight.zero_()  # of random weights, only the answers' rows were ever drawn
        else:
            weight_VD, bias_V = read(range(config.vocab_size))
            output.weight.copy_(weight_VD)
            if output.bias is not None and bias_V is not None:
                output.bias.copy_(bias_V)
        # The architecture applies its own factor to the logits, which the guard's rows already have.
        factor = encoder.logit_factor
        output.weight[list(guard.pieces.answer_ids)] = answers.weight / factor
        if output.bias is not None and answers.bias is not None:
            output.bias[list(guard.pieces.answer_ids)] = answers.bias / factor
    return model
