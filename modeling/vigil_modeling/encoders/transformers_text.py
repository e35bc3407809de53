"""Text encoder: any encoder of the transformers library over passages of token ids."""

from typing import Any

import torch
from torch import Tensor, nn

from vigil_data.decode.text import load_tokenizer
from vigil_data.errors import UserError
from vigil_data.specs import TextInput
from vigil_modeling.encoders.base import Encoder, TextOutput
from vigil_modeling.encoders.transformers_common import build_config, build_model, checkpoint_activations, stack_layers
from vigil_modeling.specs import TransformersText

WHERE = "model.encoders.text"

POSITIONS_AFTER_PADDING = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text", "longformer"}
)
"""Architectures whose positions start after the padding id, so that fewer tokens fit than there are positions."""


class TransformersTextEncoder(Encoder):
    """Encoder of one token per passage: the mean of its tokens' hidden states, or the first token's.

    Args:
        model: module from ``input_ids`` and ``attention_mask`` to ``last_hidden_state``.
        config: its configuration.
        pool: ``mean`` or ``first``.
    """

    tokens = 1

    def __init__(self, model: nn.Module, config: Any, pool: str) -> None:
        super().__init__()
        self.model = model
        self.pool = pool
        self.depth: int = config.num_hidden_layers
        self.width = config.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor, states: bool = False) -> Tensor | TextOutput:
        """Encode passages.

        Args:
            input_ids: int64 ``[S, T]``.
            attention_mask: int64 ``[S, T]``, 0 at padding.
            states: return the hidden states too.

        Returns:
            ``[S, 1, D]``, and with ``states`` ``[S, T, D]``.
        """
        hidden_STD: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        tokens_S1D = self._pooled(hidden_STD, attention_mask)
        return TextOutput(tokens_S1D, hidden_STD) if states else tokens_S1D

    def _pooled(self, hidden_STD: Tensor, attention_mask: Tensor) -> Tensor:
        if self.pool == "first":
            return hidden_STD[:, :1]
        mask_ST1 = attention_mask.unsqueeze(-1).to(hidden_STD.dtype)
        return (hidden_STD * mask_ST1).sum(1, keepdim=True) / mask_ST1.sum(1, keepdim=True).clamp(min=1)

    def blank(self) -> dict[str, Tensor]:
        """Return a passage of two tokens."""
        ids = torch.zeros(1, 2, dtype=torch.int64, device=next(self.parameters()).device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the embeddings, then of each block."""
        return stack_layers(self.model, self.depth)

    def checkpoint_activations(self) -> None:
        """See :class:`Encoder`."""
        checkpoint_activations(self.model, WHERE)


def build_text(spec: TransformersText, inputs: TextInput, load_weights: bool) -> TransformersTextEncoder:
    """Build the encoder of ``spec``.

    Raises:
        UserError: if the architecture, its weights or the tokenizer are not available, or if the tokenizer's ids or the passage
            length exceed what the architecture takes.
    """
    config = build_config(spec.weights, spec.config, WHERE)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in POSITIONS_AFTER_PADDING:
        positions -= config.pad_token_id + 1
    if positions is not None and inputs.max_tokens > positions:
        raise UserError(f"inputs.text.max_tokens is {inputs.max_tokens}, but the encoder takes {positions} tokens at most")
    check_vocabulary(inputs, config)
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{WHERE}: {config.model_type} has a decoder; take an encoder such as bert, roberta or modernbert")
    model = build_model(spec.weights, config, load_weights, WHERE)
    if any(getattr(module, "is_causal", False) for module in model.modules()):
        raise UserError(f"{WHERE}: {config.model_type} is a causal language model; write kind: decoder")
    return TransformersTextEncoder(model, config, spec.pool)


def check_vocabulary(inputs: TextInput, config: Any) -> None:
    """Check that the tokenizer's ids are in an architecture's vocabulary.

    Raises:
        UserError: if they are not.
    """
    highest = max(load_tokenizer(inputs).get_vocab().values())
    if highest >= config.vocab_size:
        raise UserError(
            f"inputs.text.tokenizer has token ids up to {highest}, but the encoder's vocabulary has {config.vocab_size}: "
            "they belong to different models"
        )
