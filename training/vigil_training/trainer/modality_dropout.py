"""Modality dropout: hide whole modalities of items in training, so that the model does not rely on one of them."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from vigil_data.items import Modality
from vigil_data.loading.batch import Batch


def drop_modalities(batch: Batch, rates: Mapping[Modality, float]) -> Batch:
    """Return a batch in which each modality of an item is hidden with its rate (ModDrop, Neverova et al. 2015, section 3.4).

    An item keeps all its modalities where it would lose the last one. Random numbers come from the global CPU generator, whose
    state checkpoints hold: a resumed run hides the same.

    Args:
        batch: a batch on any device.
        rates: modality to the probability of hiding it.
    """
    present_MN = torch.zeros(len(batch.segments), len(batch), dtype=torch.bool)
    for place, segments in enumerate(batch.segments.values()):
        present_MN[place, segments.item.cpu()] = True
    rates_M1 = torch.tensor([[rates.get(modality, 0.0)] for modality in batch.segments]).reshape(-1, 1)
    hidden_MN = present_MN & (torch.rand(present_MN.shape) < rates_M1)
    hidden_MN &= (present_MN & ~hidden_MN).any(dim=0)
    kept, spans = {}, batch.spans
    for hidden_N, (modality, segments) in zip(hidden_MN, batch.segments.items(), strict=True):
        shown_S = ~hidden_N.to(segments.item.device)[segments.item]
        select = partial(torch.index_select, dim=0, index=shown_S.nonzero()[:, 0])
        shown = segments.map(select)
        if modality == "text" and spans is not None:
            spans = select(spans)
        if len(shown.item):
            kept[modality] = shown
    return replace(batch, segments=kept, spans=spans)
