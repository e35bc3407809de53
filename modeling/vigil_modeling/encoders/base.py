"""What every encoder promises, whatever its modality or library."""

from torch import Tensor, nn


class Encoder(nn.Module):
    """Segments of one modality in, tokens out.

    ``forward(**inputs)`` takes what :class:`vigil_data.loading.batch.Segments` holds as ``inputs``, each ``[S, ...]``, and gives
    ``tokens_SPD``: P tokens of ``width`` for each segment (1 where the encoder pools). In evaluation mode a segment's tokens do
    not depend on the other segments.

    Attributes:
        width: D of the tokens.
        tokens: P, or ``None`` where it depends on the inputs.
    """

    width: int
    tokens: int | None

    def blank(self) -> dict[str, Tensor]:
        """Inputs of one neutral segment, on the encoder's device, for a rank whose batch lacks the modality."""
        raise NotImplementedError

    def layers(self) -> list[list[nn.Parameter]]:
        """All parameters, in layers, the lowest (embeddings, stem) first: the order of freezing and of layer-wise decay."""
        raise NotImplementedError

    def checkpoint_activations(self) -> None:
        """Keep only the inputs of each layer for the backward pass.

        Raises:
            UserError: the library that the encoder comes from cannot do so.
        """
        raise NotImplementedError


def freeze(encoder: Encoder, frozen: bool | int) -> None:
    """Exclude an encoder's weights from training.

    Args:
        encoder: the encoder.
        frozen: ``True`` for all weights, ``False`` for none, n for the n lowest of :meth:`Encoder.layers`.

    Raises:
        ValueError: there are fewer layers than n.
    """
    layers = encoder.layers()
    count = (len(layers) if frozen else 0) if isinstance(frozen, bool) else frozen
    if not 0 <= count <= len(layers):
        raise ValueError(f"frozen is {frozen}, but the encoder has {len(layers)} layers")
    for parameter in (p for layer in layers[:count] for p in layer):
        parameter.requires_grad_(False)


def set_mode(encoder: Encoder, training: bool) -> None:
    """``encoder.train(training)``, except that what is frozen stays in evaluation mode.

    A wholly frozen encoder is put in evaluation mode. In a partly frozen one, batch norms whose weights are frozen keep their
    running statistics.
    """
    trainable = any(p.requires_grad for p in encoder.parameters())
    encoder.train(training and trainable)
    for module in encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(p.requires_grad for p in module.parameters()):
            module.eval()
