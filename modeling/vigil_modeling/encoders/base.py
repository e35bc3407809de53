"""Interface of every encoder, and freezing."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class TextOutput(NamedTuple):
    """Output of a text encoder.

    Attributes:
        tokens_SPD: what :class:`Encoder` returns.
        states_STD: hidden state of each token of the inputs, padding included.
    """

    tokens_SPD: Tensor
    states_STD: Tensor


class Encoder(nn.Module):
    """Base class of encoders: segments of one modality to tokens.

    ``forward(**inputs)`` takes the ``inputs`` of :class:`vigil_data.loading.batch.Segments`, each ``[S, ...]``, and returns
    ``tokens_SPD``: P tokens of ``width`` for each segment (one if the encoder pools). In evaluation mode a segment's tokens do
    not depend on other segments. A text encoder returns a :class:`TextOutput` if it is called with ``states=True``.

    Attributes:
        width: D of the tokens.
        tokens: P, or ``None`` if it depends on the inputs.
        locked: number of lowest :meth:`layers` that are not trained yet (``unfreeze``), or never.
    """

    width: int
    tokens: int | None
    locked: int = 0

    def blank(self) -> dict[str, Tensor]:
        """Return inputs of one neutral segment on the encoder's device, for a rank whose batch lacks the modality."""
        raise NotImplementedError

    def layers(self) -> list[list[nn.Parameter]]:
        """Return all parameters by layer, the lowest (embeddings, stem) first, for freezing and layer-wise decay."""
        raise NotImplementedError

    def checkpoint_activations(self) -> None:
        """Store only the inputs of each layer and recompute the rest in the backward pass.

        Raises:
            UserError: if the encoder's library does not support it.
        """
        raise NotImplementedError


def tokens_per_segment(encoder: Encoder) -> int:
    """Return P of an encoder; where it depends on the inputs, that of a blank segment."""
    if encoder.tokens is not None:
        return encoder.tokens
    with torch.inference_mode():
        return int(encoder(**encoder.blank()).shape[1])


def freeze(encoder: Encoder, frozen: bool | int) -> None:
    """Exclude an encoder's weights from training.

    Args:
        encoder: the encoder.
        frozen: ``True`` for all weights, ``False`` for none, n for the n lowest of :meth:`Encoder.layers`.

    Raises:
        ValueError: if there are fewer layers than n.
    """
    layers = encoder.layers()
    count = (len(layers) if frozen else 0) if isinstance(frozen, bool) else frozen
    if not 0 <= count <= len(layers):
        raise ValueError(f"frozen is {frozen}, but the encoder has {len(layers)} layers")
    for parameter in (p for layer in layers[:count] for p in layer):
        parameter.requires_grad_(False)


def set_mode(encoder: Encoder, training: bool) -> None:
    """Call ``encoder.train(training)``, but keep frozen and locked parts in evaluation mode.

    A fully frozen encoder stays in evaluation mode. In a partly frozen one, batch norms with frozen weights keep their running
    statistics.
    """
    locked = {id(p) for layer in encoder.layers()[: encoder.locked] for p in layer} if encoder.locked else set()

    def trains(module: nn.Module) -> bool:
        return any(p.requires_grad and id(p) not in locked for p in module.parameters())

    encoder.train(training and trains(encoder))
    for module in encoder.modules():
        if isinstance(module, BATCH_NORMS) and not trains(module):
            module.eval()
