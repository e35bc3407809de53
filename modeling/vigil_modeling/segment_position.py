"""What a segment is and when: embeddings of its role and of its time, added to its tokens before fusion."""

import math

import torch
from torch import Tensor, nn

from vigil_data.items import ROLES
from vigil_modeling.specs import ModelSpec, TimePosition


class SegmentPosition(nn.Module):
    """Learned embedding of a segment's role, and of its start and end in seconds.

    Roles are embedded as BERT embeds its two kinds of sentences (Devlin et al. 2019, section 3). A time becomes sines and cosines
    at geometrically spaced periods (Vaswani et al. 2017, section 3.5; in seconds, as by Xu et al. 2019, section 3), to which a
    linear layer is applied. Start and end have the same features, so that what happens at one time is alike in every modality.
    All weights start at zero, so that they can be added to a trained model without changing it.

    Args:
        width: D.
        roles: embed roles.
        time: how times are embedded; ``None`` ignores them.
    """

    def __init__(self, width: int, roles: bool, time: TimePosition | None) -> None:
        super().__init__()
        self.role_RD: nn.Parameter | None = None
        self.time: nn.Linear | None = None
        self.period_K: Tensor
        if roles:
            self.role_RD = nn.Parameter(torch.zeros(len(ROLES), width))
        if time is not None:
            period_K = torch.logspace(math.log10(time.shortest), math.log10(time.longest), time.periods)
            self.register_buffer("period_K", period_K, persistent=False)
            self.time = nn.Linear(4 * time.periods, width, bias=False)
            nn.init.zeros_(self.time.weight)

    def forward(self, role_T: Tensor, time_T2: Tensor) -> Tensor:
        """Embed the segment of each token.

        Args:
            role_T: int64 ``[T]``, the place of the role in :data:`vigil_data.items.ROLES`.
            time_T2: float32 ``[T, 2]``, start and end in seconds; -1 without a time.

        Returns:
            ``[T, D]``, to be added to the tokens.
        """
        parts = []
        if self.role_RD is not None:
            parts.append(nn.functional.embedding(role_T, self.role_RD))
        if self.time is not None:
            cycles_T2K = time_T2.unsqueeze(2) / self.period_K
            angle_T2K = 2 * math.pi * (cycles_T2K - cycles_T2K.floor())  # small, so that every backend's sine is exact
            waves_TW = torch.cat([angle_T2K.sin(), angle_T2K.cos()], dim=2).flatten(1)
            parts.append(self.time(waves_TW * (time_T2[:, :1] >= 0)))
        return torch.stack(parts).sum(0)


def build_position(spec: ModelSpec) -> SegmentPosition | None:
    """Build the embeddings of a recipe's model; ``None`` if it uses neither roles nor times."""
    if not spec.segment_roles and spec.time_position is None:
        return None
    return SegmentPosition(spec.width, spec.segment_roles, spec.time_position)
