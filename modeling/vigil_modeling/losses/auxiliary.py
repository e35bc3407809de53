"""Loss of the auxiliary heads of single modalities, and the balance of gradients between modalities (OGM-GE)."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from vigil_data.items import Modality
from vigil_modeling.fusion import Alone
from vigil_modeling.specs import OgmGe


def auxiliary_loss(loss: nn.Module, alone: Alone, targets_NL: Tensor) -> Tensor:
    """Return the sum over modalities of the loss of the items that have them; zero with zero gradients if no item has any.

    Args:
        loss: the loss of the fused prediction.
        alone: predictions of each modality alone.
        targets_NL: values in [0, 1], NaN for unknown.
    """
    pairs = zip(alone.raw_MNL, alone.present_MN, strict=True)
    return torch.stack([loss(raw_NL[present_N], targets_NL[present_N]) for raw_NL, present_N in pairs]).sum()


def balance_gradients(spec: OgmGe, targets_NL: Tensor, alone: Alone, tokens: Mapping[Modality, Tensor]) -> None:
    """Modulate the gradients that the fused prediction's loss will send into each modality's encoder.

    The gradient of a modality's tokens is multiplied by its coefficient, and with ``spec.noise`` noise of the same standard
    deviation is added to it (Peng et al. 2022, equations 9 and 10). Acting on tokens and not on weights, this is the same under
    every strategy. The noise is drawn here, from torch's global generator, and not in the backward pass.

    Args:
        spec: strength, and whether to add noise.
        targets_NL: values in [0, 1], NaN for unknown.
        alone: predictions of each modality alone.
        tokens: modality to the tokens ``[T, D]`` on their way to the fusion, in the order of ``alone``.
    """
    for tokens_TD, coefficient in zip(tokens.values(), modulation(spec.alpha, alone, targets_NL), strict=True):
        if tokens_TD.requires_grad:
            noise_TD = torch.randn_like(tokens_TD) if spec.noise else None
            tokens_TD.register_hook(partial(_modulate, coefficient, noise_TD))  # type: ignore[no-untyped-call]


def modulation(alpha: float, alone: Alone, targets_NL: Tensor) -> Tensor:
    """Return the coefficient of each modality's gradient, ``[M]`` (Peng et al. 2022, equations 5 to 8).

    A modality's score is the mean probability that its head gives to the known targets. The coefficient is
    ``1 - tanh(alpha * ratio)`` where the ratio of the score to the mean score of the batch's other modalities is above 1, and 1
    elsewhere. The paper has two modalities and one label; this is the same for these.

    Args:
        alpha: strength.
        alone: predictions of each modality alone.
        targets_NL: values in [0, 1], NaN for unknown.
    """
    with torch.no_grad():
        counts_MNL = alone.present_MN.unsqueeze(2) & ~targets_NL.isnan()
        soft_NL, probability_MNL = targets_NL.nan_to_num().float(), alone.raw_MNL.float().sigmoid()
        right_MNL = soft_NL * probability_MNL + (1 - soft_NL) * (1 - probability_MNL)
        count_M = counts_MNL.sum((1, 2))
        score_M = (right_MNL * counts_MNL).sum((1, 2)) / count_M.clamp(min=1)
        here_M = (count_M > 0).float()
        others_M = (score_M.sum() - score_M) / (here_M.sum() - here_M).clamp(min=1)
        ratio_M = torch.where(others_M > 0, score_M / others_M, 0.0)
        return torch.where(ratio_M > 1, 1 - torch.tanh(alpha * ratio_M), 1.0)


def _modulate(coefficient: Tensor, noise: Tensor | None, gradient: Tensor) -> Tensor:
    modulated = gradient * coefficient.to(gradient.dtype)
    if noise is None or not len(gradient):
        return modulated
    return modulated + gradient.std(correction=0) * noise.to(gradient.dtype)
