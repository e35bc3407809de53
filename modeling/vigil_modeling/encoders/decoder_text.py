"""Decoder: a causal language model over passages of token ids, as a text encoder and as the language model of a guard."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vigil_data.errors import UserError
from vigil_data.specs import TextInput
from vigil_modeling.encoders import block_attention
from vigil_modeling.encoders.base import Encoder, TextOutput
from vigil_modeling.encoders.block_attention import PassageRows, pack_passages
from vigil_modeling.encoders.decoder_weights import ReadOutput, build_body, build_decoder_config, output_reader
from vigil_modeling.encoders.transformers_common import checkpoint_activations, stack_layers
from vigil_modeling.encoders.transformers_text import check_vocabulary
from vigil_modeling.specs import DecoderText

WHERE = "model.encoders.text"


class OutputRows(nn.Module):
    """A few rows of a language model's output layer, whose logits are those of the complete layer.

    Args:
        weight_KD: the rows, with any factor of the architecture on its logits.
        bias_K: their bias; ``None`` in most architectures.
        softcap: c of a cap c tanh(x / c) on the logits.
    """

    def __init__(self, weight_KD: Tensor, bias_K: Tensor | None, softcap: float | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_KD)
        self.bias = None if bias_K is None else nn.Parameter(bias_K)
        self.softcap = softcap

    def forward(self, hidden_AD: Tensor) -> Tensor:
        """Return the logits ``[A, K]`` of the rows' tokens."""
        logits_AK = nn.functional.linear(hidden_AD, self.weight, self.bias)
        return logits_AK if self.softcap is None else self.softcap * torch.tanh(logits_AK / self.softcap)


class DecoderTextEncoder(Encoder):
    """Causal language model: one token per passage, or the hidden states of any prompts.

    In training and inference, short passages share rows (:func:`.pack_passages`) under a mask that keeps them apart. In an
    exported graph each passage has its own row.

    Args:
        model: body of a decoder of the transformers library, whose attention is :func:`.block_attention.attend`.
        config: its configuration.
        pool: ``last``, ``mean`` or ``attention``.
        read_output: function from token ids to rows and biases of the output layer; ``None``: its rows are the embeddings.

    Attributes:
        max_positions: length of the longest prompt.
        logit_factor: factor of the architecture on the logits of its output layer.
        query_D: learned query of ``attention``; at zero, where it starts, all tokens weigh the same.
    """

    tokens = 1

    def __init__(self, model: nn.Module, config: Any, pool: str, read_output: ReadOutput | None) -> None:
        super().__init__()
        self.model = model
        self.pool = pool
        self.depth: int = config.num_hidden_layers
        self.width: int = config.hidden_size
        self.max_positions: int = config.max_position_embeddings
        self.query_D = nn.Parameter(torch.zeros(self.width)) if pool == "attention" else None
        self._read_output = read_output
        self.logit_factor: float = getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._compiled = False

    def forward(self, input_ids: Tensor, attention_mask: Tensor, states: bool = False) -> Tensor | TextOutput:
        """Encode passages.

        Args:
            input_ids: int64 ``[S, T]``.
            attention_mask: int64 ``[S, T]``, 0 at padding, which follows the passage's tokens.
            states: return the hidden states too.

        Returns:
            ``[S, 1, D]``, and with ``states`` ``[S, T, D]``, in which those of padding are arbitrary.
        """
        rows = self._pack(attention_mask)
        if rows is None:
            column_T = torch.arange(input_ids.shape[1], device=input_ids.device)
            mask_STT = (column_T.unsqueeze(1) >= column_T) & attention_mask.bool().unsqueeze(1)
            hidden_STD, _ = self.hidden(self.embed(input_ids), column_T.expand_as(input_ids), mask_STT.unsqueeze(1))
        else:
            ids_RT = input_ids.flatten()[rows.source_RT.clamp(min=0)]
            hidden_RTD, _ = self.hidden(self.embed(ids_RT), rows.position_RT, rows.mask_R1TT)
            hidden_STD = hidden_RTD.flatten(0, 1)[rows.place_ST]
        tokens_S1D = self._pooled(hidden_STD, attention_mask).unsqueeze(1)
        return TextOutput(tokens_S1D, hidden_STD) if states else tokens_S1D

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings ``[..., D]`` of token ids, as the body takes them; soft tokens may stand among them."""
        embeds: Tensor = self.model.get_input_embeddings()(input_ids)  # type: ignore[operator]
        return embeds

    def hidden(
        self,
        embeds_RTD: Tensor,
        position_RT: Tensor,
        mask_R1TT: Tensor,
        *,
        answers: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the body over rows of any prompts.

        Args:
            embeds_RTD: embeddings, see :meth:`embed`.
            position_RT: int64, position of each token in its own prompt, below :attr:`max_positions`.
            mask_R1TT: bool, whether a token (third dimension) attends to another one (fourth). All tokens attend to themselves,
                also padding, whose mask may be all false. An architecture's sliding windows are added here.
            answers: row and column of some tokens, each int64 ``[A]``.

        Returns:
            Hidden states ``[R, T, D]`` after the body's last norm, and with ``answers``, the attention ``[A, T]`` of these tokens
            over their rows in the last layer, float32, the mean over heads; it has no gradient.

        Raises:
            UserError: if not every layer of the architecture attends under the mask.
        """
        column_T = torch.arange(embeds_RTD.shape[1], device=embeds_RTD.device)
        rows = block_attention.Rows(position_RT, mask_R1TT | (column_T.unsqueeze(1) == column_T), answers, self.depth - 1)
        with _without_warnings_of_compilation() if self._compiled else nullcontext():
            output = self.model(
                inputs_embeds=embeds_RTD, position_ids=position_RT, attention_mask=mask_R1TT, use_cache=False, rows=rows
            )
        if rows.layers != self.depth:
            raise UserError(
                f"{WHERE}: {type(self.model).__name__} has {self.depth} layers, and {rows.layers} attend under a mask of blocks; "
                "take a decoder without convolutions, recurrence or linear attention, such as llama, qwen3 or gemma3_text"
            )
        return output.last_hidden_state, rows.attention_AT

    def output_rows(self, token_ids: Sequence[int]) -> OutputRows:
        """Return the rows of the output layer for some tokens, as a module of its own whose weights can be trained.

        Raises:
            UserError: if the weights have no output layer.
        """
        bias_K: Tensor | None = None
        if self._read_output is None:
            weight_VD: Tensor = self.model.get_input_embeddings().weight  # type: ignore[operator]
            weight_KD = weight_VD[list(token_ids)].detach().float()
        else:
            weight_KD, bias_K = self._read_output(token_ids)
        return OutputRows(weight_KD * self.logit_factor, None if bias_K is None else bias_K * self.logit_factor, self._softcap)

    def blank(self) -> dict[str, Tensor]:
        """Return a passage of two tokens."""
        ids = torch.zeros(1, 2, dtype=torch.int64, device=next(self.parameters()).device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the embeddings, then of each block; those of the last norm and the query join the last."""
        layers = stack_layers(self.model, self.depth)
        return layers if self.query_D is None else [*layers[:-1], [*layers[-1], self.query_D]]

    def checkpoint_activations(self) -> None:
        """See :class:`Encoder`."""
        checkpoint_activations(self.model, WHERE)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the body, see ``torch.nn.Module.compile``; how passages are packed depends on their lengths."""
        self.model.compile(*args, **kwargs)
        self._compiled = True

    def _pack(self, attention_mask: Tensor) -> PassageRows | None:
        """Return how passages share rows; ``None`` if each has its own, as in a graph and where it saves no row."""
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if traced or type(attention_mask) is not Tensor or attention_mask.is_meta:  # without values
            return None
        lengths = attention_mask.sum(1).cpu().numpy()
        return pack_passages(lengths, attention_mask.shape[1], attention_mask.device, min_rows=2 if self._compiled else 1)

    def _pooled(self, hidden_STD: Tensor, attention_mask: Tensor) -> Tensor:
        """Return one token per passage, ``[S, D]``."""
        if self.pool == "last":
            last_S = (attention_mask.sum(1) - 1).clamp(min=0)
            return hidden_STD.gather(1, last_S.view(-1, 1, 1).expand(-1, 1, self.width)).squeeze(1)
        mask_ST = attention_mask.bool()
        if self.query_D is None:
            weights_ST = mask_ST / mask_ST.sum(1, keepdim=True).clamp(min=1)
        else:
            scores_ST = (hidden_STD @ self.query_D).float() / self.width**0.5
            weights_ST = scores_ST.masked_fill(~mask_ST, -torch.inf).softmax(1)
        return (weights_ST.to(hidden_STD.dtype).unsqueeze(1) @ hidden_STD).squeeze(1)


@contextmanager
def _without_warnings_of_compilation() -> Iterator[None]:
    """Silence torch's compiler, which looks at the gradient of inputs that have none, such as embeddings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf Tensor", UserWarning)
        yield


def build_decoder(spec: DecoderText, inputs: TextInput, load_weights: bool) -> DecoderTextEncoder:
    """Build the encoder of ``spec``.

    Raises:
        UserError: if the architecture, its weights or the tokenizer are not available, if the tokenizer's ids or the passage
            length exceed what the architecture takes, or if it cannot run under a mask of blocks.
    """
    config = build_decoder_config(spec, WHERE)
    if inputs.max_tokens > config.max_position_embeddings:
        longest = config.max_position_embeddings
        raise UserError(f"inputs.text.max_tokens is {inputs.max_tokens}, but the encoder takes {longest} tokens at most")
    check_vocabulary(inputs, config)
    model = build_body(spec, config, load_weights, WHERE)
    encoder = DecoderTextEncoder(model, config, spec.pool, output_reader(spec, config, load_weights))
    with torch.no_grad():
        encoder.eval()(**encoder.blank())
    return encoder
