"""The packed batch: for each modality only the segments that exist, each with the row of its item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vigil_data.items import Modality
from vigil_data.loading.packing import Packed, Refusal
from vigil_data.prompts.policy_sampling import TrainingQuestions

TOKENS = "tokens"
"""Name of a frozen encoder's output among a segment's inputs, from the token cache; see :mod:`vigil_data.loading.token_files`."""


@dataclass(frozen=True, slots=True)
class Segments:
    """The segments of one modality in a batch.

    Attributes:
        item: int64 ``[S]``, ascending: the row of the batch that each segment belongs to.
        inputs: the encoder's inputs, each ``[S, ...]``. Text: ``input_ids``, ``attention_mask`` int64 ``[S, T]``; image:
            ``pixels`` uint8 ``[S, 3, H, W]``; audio: ``waveform`` float32 ``[S, T]``. With the token cache: ``tokens`` float32
            ``[S, P, width]``, the encoder's output.
        role: int64 ``[S]``: the place of each segment's role in :data:`vigil_data.items.ROLES`.
        time: float32 ``[S, 2]``: start and end of each segment in seconds, -1 for a segment without a time.
    """

    item: Tensor
    inputs: dict[str, Tensor]
    role: Tensor
    time: Tensor

    def placement(self) -> dict[str, Tensor]:
        """Return the arrays other than the encoder's inputs by name: ``item``, ``role`` and ``time``."""
        return {"item": self.item, "role": self.role, "time": self.time}

    def map(self, function: Callable[[Tensor], Tensor]) -> Segments:
        """Return the segments with ``function`` applied to every tensor."""
        inputs = {k: function(v) for k, v in self.inputs.items()}
        return Segments(function(self.item), inputs, function(self.role), function(self.time))


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of N items.

    Attributes:
        ids: the items' ids, ``[N]``.
        segments: modality to its segments; a modality that no item has is absent.
        targets: float32 ``[N, L]`` in the taxonomy's order; NaN is unknown.
        share: factor on the batch's summed loss, with which gradients equal those of the mean over all known targets of the
            global batch, however unequal its parts are. ``None`` outside training.
        refused: items planned for this batch that could not be decoded.
        group: int64 ``[N]``, the group of each item in training with groups.
        teacher: float32 ``[N, L]``, a teacher's probabilities in distillation; NaN where it has none.
        questions: what a guard is asked, in training on policies and in validation (default: in training a question for each
            known target, otherwise one for each label of each item).
        spans: float32 ``[S, T, K]``, the targets of the tokens of the text segments for K labels with spans; NaN is unknown. Only
            in training, if the reader is given columns of spans.
    """

    ids: tuple[str, ...]
    segments: Mapping[Modality, Segments]
    targets: Tensor
    share: float | None = None
    refused: tuple[Refusal, ...] = ()
    group: Tensor | None = None
    teacher: Tensor | None = None
    questions: TrainingQuestions | None = None
    spans: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on ``device``."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return self.map(move)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory (called by the DataLoader)."""
        return self.map(Tensor.pin_memory)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with ``function`` applied to every tensor but those of the questions."""
        segments = {modality: segments.map(function) for modality, segments in self.segments.items()}
        known = {name: getattr(self, name) for name in ("group", "teacher", "spans")}
        optional: dict[str, Any] = {name: function(tensor) for name, tensor in known.items() if tensor is not None}
        return replace(self, segments=segments, targets=function(self.targets), **optional)


def collate(packed: Packed, share: float | None = None) -> Batch:
    """Wrap packed arrays as tensors, without a copy.

    Args:
        packed: result of :func:`vigil_data.loading.packing.pack`.
        share: see :class:`Batch`.
    """
    segments = {
        modality: Segments(
            torch.from_numpy(s.item),
            {k: torch.from_numpy(v) for k, v in s.inputs.items()},
            torch.from_numpy(s.role),
            torch.from_numpy(s.time),
        )
        for modality, s in packed.segments.items()
    }
    return Batch(packed.ids, segments, torch.from_numpy(packed.targets), share, packed.refused)
