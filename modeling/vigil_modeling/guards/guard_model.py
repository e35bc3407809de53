"""The guard: a causal language model that reads a label's policy and an item, and answers whether the item violates it.

The logit of an item and a label is the logit of the answer "yes" minus that of "no" at the last token of their prompt. Prompts
that share a beginning, a policy or an item, stand in one row that has it once; a mask keeps them apart. So what a prompt shares
its row with does not change its logit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vigil_data.errors import UserError
from vigil_data.items import MODALITIES, Modality
from vigil_data.loading.batch import Batch
from vigil_data.prompts.assemble import (
    PromptRows,
    Question,
    SegmentTokens,
    assemble,
    questions_all,
    soft_tokens,
    text_tokens,
    text_tokens_of,
)
from vigil_data.prompts.build import build_prompt
from vigil_data.prompts.clauses import Clause
from vigil_data.prompts.pieces import PromptPieces
from vigil_data.prompts.policy_sampling import TrainingQuestions
from vigil_data.specs import Inputs
from vigil_data.taxonomy import Taxonomy
from vigil_modeling.encoders import Encoder, build_encoders
from vigil_modeling.encoders.decoder_text import DecoderTextEncoder
from vigil_modeling.losses import Composites
from vigil_modeling.multimodal_model import Balance, MultimodalModel, Prediction
from vigil_modeling.specs import GuardSpec

ROW_TENSORS = ("input_ids", "soft", "position", "block", "sees", "segment", "answer_row", "answer_column", "answer")
"""The arrays of :class:`.PromptRows` that :meth:`GuardModel.run_rows` takes."""

ROW_MULTIPLE = 64
"""Multiple to which training rounds up the length of rows and the number of their blocks, so that most steps have the same few
shapes. In bf16 on a CPU, memory grew with each new shape, and a step took a sixth longer."""


class RowOutputs(NamedTuple):
    """Outputs of the language model for R rows with A answers.

    Attributes:
        logits_A: log-odds of each answer, float32.
        evidence_SL: of each segment, the share of the attention of the answers for its item in the last layer, the mean over
            heads, float32; ``None`` if it is not wanted.
        spans_RTK: log-odds of the span head at each token, float32; ``None`` without a span head.
    """

    logits_A: Tensor
    evidence_SL: Tensor | None
    spans_RTK: Tensor | None


class SoftTokens(nn.Sequential):
    """Linear projection of an encoder's tokens into a language model's embedding space (LLaVA, Liu et al. 2023, section 4.1).

    The tokens are normalized first, since encoders differ in scale, and begin with the scale of the model's own embeddings.

    Args:
        encoder_width: width of the encoder's tokens.
        width: D of the language model.
        scale: standard deviation of the language model's embeddings.
    """

    def __init__(self, encoder_width: int, width: int, scale: float) -> None:
        linear = nn.Linear(encoder_width, width)
        nn.init.normal_(linear.weight, std=scale * encoder_width**-0.5)
        nn.init.zeros_(linear.bias)
        super().__init__(nn.LayerNorm(encoder_width), linear)


class GuardModel(MultimodalModel):
    """Model that asks a language model one question for each item and label.

    Args:
        encoders: modality to its encoder; that of text is the language model.
        spec: the weights to freeze, and dependencies between labels.
        taxonomy: the labels.
        pieces: constant pieces of the prompt.
        clauses: what questions number; the first L are the policy texts of the labels, in the taxonomy's order, and the others
            belong to training on policies.

    Attributes:
        answers: the output layer, pruned to the two answers; its rows are trained, whatever is frozen.
        pieces: see above; its order may be ``auto`` until the model is used.
        clauses: see above.

    Raises:
        UserError: if more layers are to be frozen than an encoder has.
    """

    def __init__(
        self,
        encoders: Mapping[Modality, Encoder],
        spec: GuardSpec,
        taxonomy: Taxonomy,
        pieces: PromptPieces,
        clauses: Sequence[Clause],
    ) -> None:
        model = encoders["text"]
        assert isinstance(model, DecoderTextEncoder)
        scale = embedding_scale(model, pieces)
        projections: dict[Modality, nn.Module] = {
            m: SoftTokens(encoders[m].width, model.width, scale) for m in MODALITIES if m in encoders and m != "text"
        }
        super().__init__(encoders, projections, spec, taxonomy, model.width)
        self.answers = model.output_rows(pieces.answer_ids)
        self.pieces = pieces
        self.clauses = tuple(clauses)
        self.train()

    @property
    def language_model(self) -> DecoderTextEncoder:
        """The encoder of text."""
        encoder = self.encoder("text")
        assert isinstance(encoder, DecoderTextEncoder)
        return encoder

    def forward(self, batch: Batch, touch_all: bool = False, balance: Balance | None = None) -> Prediction:
        """Predict the labels of a batch; see :meth:`.MultimodalModel.forward`.

        In training, only what the loss of the batch's targets reads is asked; the other logits are 0, and there is no evidence.
        The remainder of the evidence of an item's segments is the weight of policy, question and instruction.
        """
        del balance  # a guard has no auxiliary heads
        tokens: dict[Modality, Tensor] = {}
        touched: list[Tensor] = []
        for modality in self.modalities:
            if modality == "text":
                continue
            if modality in batch.segments:
                tokens[modality] = self.encode(modality, **batch.segments[modality].inputs)
            elif touch_all:
                touched.append(self._touch(modality))
        questions = self.questions(batch)
        cells = len(batch) * len(self.labels)
        drawn = 0 if batch.questions is None else len(batch.questions.target_Q)
        logits_C = torch.zeros(cells + drawn, device=next(self.parameters()).device)
        evidence: dict[Modality, Tensor] = {}
        self.prompt_rows = (0, 0)
        spans_STK: Tensor | None = None
        if questions:
            rows = self.assemble(batch, {m: tokens_SPD.shape[1] for m, tokens_SPD in tokens.items()}, questions)
            self.prompt_rows = rows.block.shape[0], rows.block.shape[1]
            counts = {m: len(batch.segments[m].item) for m in self.modalities if m in batch.segments}
            segments_S = None if self.training else torch.arange(sum(counts.values()), device=logits_C.device)
            outputs = self.run_rows(row_tensors(rows, logits_C.device), self._soft(tokens), segments_S)
            logits_C = logits_C.index_copy(0, torch.from_numpy(rows.answer).to(logits_C.device), outputs.logits_A)
            if outputs.evidence_SL is not None:
                parts = torch.split(outputs.evidence_SL, list(counts.values()))
                evidence = dict(zip(counts, parts, strict=True))
            if outputs.spans_RTK is not None and "text" in batch.segments:
                spans_STK = self._spans_of_texts(batch, rows, outputs.spans_RTK)
        elif touch_all:
            touched += [self._touch("text"), *(tokens_SPD.sum() for tokens_SPD in tokens.values())]
        if touch_all and self.spans is not None and spans_STK is None:
            touched.append(self._touch_spans() + torch.zeros_like(logits_C[:1]).sum())
        for total in touched:
            logits_C = logits_C + 0.0 * total
        raw_NL = logits_C[:cells].reshape(len(batch), len(self.labels))
        prediction = Prediction(self.structure.constrain(raw_NL), raw_NL, evidence, spans_STK=spans_STK)
        if batch.questions is None or not drawn:
            return prediction
        target_Q, member_QL = (torch.from_numpy(array).to(raw_NL.device) for array in batch.questions[1:])
        return prediction._replace(composites=Composites(logits_C[cells:], target_Q, member_QL))

    def map_values(self, batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
        """See :meth:`.MultimodalModel.map_values`; the layout of prompts depends on all but the values of pictures and sound."""
        segments = {
            m: replace(s, inputs={k: function(v) for k, v in s.inputs.items()}) if m != "text" else s
            for m, s in batch.segments.items()
        }
        return replace(batch, segments=segments)

    def questions(self, batch: Batch) -> Sequence[Question]:
        """Return what is asked of a batch, if the batch does not state it.

        In training that is what its loss reads, otherwise each item against each label's clause.
        """
        labels = len(self.labels)
        if batch.questions is not None:
            return batch.questions.questions
        if not self.training:
            return questions_all(len(batch), labels)
        return self._asked(batch, whole_subtrees=batch.teacher is not None)

    def for_known_targets(self, batch: Batch, complete_N: NDArray[np.bool_] | None = None) -> Batch:
        """See :meth:`.MultimodalModel.for_known_targets`: an unknown target makes no prompt, and its logit is 0."""
        labels = len(self.labels)
        nothing = np.zeros(0, np.float32), np.zeros((0, labels), np.bool_)
        asked = self._asked(batch, whole_subtrees=True, complete_N=complete_N)
        return replace(batch, questions=TrainingQuestions(tuple(asked), *nothing))

    def _asked(self, batch: Batch, whole_subtrees: bool, complete_N: NDArray[np.bool_] | None = None) -> list[Question]:
        """Return questions about the labels that known targets need; see :meth:`.LabelStructure.read_by_loss`."""
        labels, asked_NL = len(self.labels), self.structure.read_by_loss(_array(batch.targets), distills=whole_subtrees)
        if complete_N is not None:
            asked_NL |= complete_N[:, None]
        return [Question(n, (label,), n * labels + label) for n, label in np.argwhere(asked_NL).tolist()]

    def assemble(self, batch: Batch, soft: Mapping[Modality, int], questions: Sequence[Question]) -> PromptRows:
        """Assemble the prompts of questions about a batch; in training, in rows of multiples of :data:`ROW_MULTIPLE`.

        Args:
            batch: on any device; the prompts are assembled on the CPU.
            soft: modality to the number of soft tokens of each of its segments.
            questions: at least one.
        """
        segments: dict[Modality, SegmentTokens] = {}
        for modality in self.modalities:
            if modality not in batch.segments:
                continue
            found = batch.segments[modality]
            item_S, role_S = _array(found.item), _array(found.role)
            if modality == "text":
                ids_ST, mask_ST = (_array(found.inputs[name]) for name in ("input_ids", "attention_mask"))
                segments[modality] = text_tokens(item_S, role_S, ids_ST, mask_ST)
            else:
                segments[modality] = soft_tokens(item_S, role_S, soft[modality])
        return assemble(self.pieces, self.clauses, questions, segments, multiple=ROW_MULTIPLE if self.training else 1)

    def run_rows(self, rows: Mapping[str, Tensor], soft_KD: Tensor | None, segments_S: Tensor | None) -> RowOutputs:
        """Run the language model over rows of prompts. This is the part of the forward pass that is exported.

        Args:
            rows: :data:`ROW_TENSORS` of R rows with A answers.
            soft_KD: soft tokens of all images, then of all windows of audio; ``None`` if the model reads text alone.
            segments_S: any tensor with one entry for each segment of the batch; ``None``: evidence is not wanted.
        """
        model = self.language_model
        embeds_RTD = model.embed(rows["input_ids"])
        if soft_KD is not None:
            padded_KD = torch.cat([soft_KD.new_zeros(1, soft_KD.shape[1]), soft_KD]).to(embeds_RTD.dtype)
            embeds_RTD = torch.where(rows["soft"].unsqueeze(-1) > 0, padded_KD[rows["soft"]], embeds_RTD)
        answers = (rows["answer_row"], rows["answer_column"])
        mask_R1TT = block_mask(rows["block"], rows["sees"])
        hidden_RTD, attention_AT = model.hidden(
            embeds_RTD, rows["position"], mask_R1TT, answers=None if segments_S is None else answers
        )
        logits_A2 = self.answers(hidden_RTD[answers]).float()
        logits_A = logits_A2[:, 0] - logits_A2[:, 1]
        spans_RTK = None if self.spans is None else self.spans(hidden_RTD).float()
        if segments_S is None:
            return RowOutputs(logits_A, None, spans_RTK)
        assert attention_AT is not None
        labels, segment_AT = len(self.labels), rows["segment"].index_select(0, rows["answer_row"])
        cell_AT = segment_AT * labels + (rows["answer"] % labels).unsqueeze(1)
        cells = attention_AT.new_zeros((segments_S.shape[0] + 1) * labels)
        evidence_SL = cells.scatter_add(0, cell_AT.flatten(), attention_AT.flatten()).reshape(-1, labels)[1:]
        return RowOutputs(logits_A, evidence_SL, spans_RTK)

    def _spans_of_texts(self, batch: Batch, rows: PromptRows, spans_RTK: Tensor) -> Tensor:
        """Return :attr:`.Prediction.spans_STK`: for each label, what the head reads in that label's prompt."""
        labels = len(self.labels)
        found = text_tokens_of(rows, [self.labels.index(label) for label in self.span_labels], labels, len(batch) * labels)
        row, column, segment, token, label = (torch.from_numpy(array).to(spans_RTK.device) for array in found)
        shape = (*batch.segments["text"].inputs["input_ids"].shape, len(self.span_labels))
        return spans_RTK.new_full(shape, torch.nan).index_put((segment, token, label), spans_RTK[row, column, label])

    def _soft(self, tokens: Mapping[Modality, Tensor]) -> Tensor | None:
        if not self.projections:
            return None
        none = torch.zeros(0, self.width, device=next(self.parameters()).device)
        return torch.cat([none, *(tokens[m].flatten(0, 1) for m in self.modalities if m in tokens)])

    def _touch(self, modality: Modality) -> Tensor:
        """Return a number that depends on all weights of a modality; of the language model, its answer about an empty item."""
        if modality != "text":
            return super()._touch(modality)
        rows = assemble(self.pieces, self.clauses, [Question(0, (0,), 0)], {})
        device = next(self.parameters()).device
        return self.run_rows(row_tensors(rows, device), self._soft({}), None).logits_A.sum()


def _array(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor's values; one on the CPU is not copied, also where operations on tensors have no values (planning)."""
    return np.from_dlpack(tensor if tensor.device.type == "cpu" else tensor.cpu())


def row_tensors(rows: PromptRows, device: torch.device) -> dict[str, Tensor]:
    """Return the arrays of rows that :meth:`GuardModel.run_rows` takes."""
    return {name: torch.from_numpy(getattr(rows, name)).to(device) for name in ROW_TENSORS}


def block_mask(block_RT: Tensor, sees_RBB: Tensor) -> Tensor:
    """Return which tokens attend to which, bool ``[R, 1, T, T]``: those of blocks that their block sees, up to themselves.

    Args:
        block_RT: block of each token, int64.
        sees_RBB: whether block b attends to block c.
    """
    column_T = torch.arange(block_RT.shape[1], device=block_RT.device)
    # Products of zeros and ones: an index of all pairs of tokens would take eight bytes for each.
    in_block_RTB = (block_RT.unsqueeze(2) == torch.arange(sees_RBB.shape[1], device=block_RT.device)).float()
    sees_RTT = in_block_RTB @ sees_RBB.float() @ in_block_RTB.transpose(1, 2) > 0.5
    return (sees_RTT & (column_T.unsqueeze(1) >= column_T)).unsqueeze(1)


@torch.no_grad()
def embedding_scale(model: Any, pieces: PromptPieces) -> float:
    """Return the standard deviation of the embeddings of a prompt's constant tokens; 1 for a model without memory."""
    ids = torch.tensor([[*pieces.header, *pieces.question]], device=next(model.parameters()).device)
    embeds_1TD = model.embed(ids)
    return 1.0 if embeds_1TD.is_meta else float(embeds_1TD.float().std())


def build_guard(spec: GuardSpec, inputs: Inputs, taxonomy: Taxonomy, load_weights: bool = True) -> GuardModel:
    """Build the guard of a recipe; see :func:`vigil_modeling.safety_model.build_model`."""
    assert inputs.text is not None
    pieces, clauses = build_prompt(spec.prompt, inputs.text.tokenizer, taxonomy, spec.policies)
    encoders = build_encoders(spec.encoders, inputs, load_weights)
    model = encoders["text"]
    assert isinstance(model, DecoderTextEncoder)
    if pieces.max_tokens > model.max_positions:
        raise UserError(
            f"model.prompt.max_tokens is {pieces.max_tokens}, but the model takes {model.max_positions} tokens at most"
        )
    return GuardModel(encoders, spec, taxonomy, pieces, clauses)
