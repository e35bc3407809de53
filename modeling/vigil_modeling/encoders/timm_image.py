"""Image encoder: any timm backbone over uint8 RGB, with pixel normalization in the graph."""

import torch
from torch import Tensor, nn

from vigil_data.specs import ImageInput
from vigil_modeling.encoders.base import Encoder
from vigil_modeling.encoders.timm_backbone import TimmBackbone, build_backbone
from vigil_modeling.specs import TimmImage


class TimmImageEncoder(Encoder):
    """Encoder of uint8 images.

    Args:
        backbone: module from normalized float pixels to tokens.
        size: height and width of the images.
        mean: mean of red, green and blue in [0, 1].
        std: standard deviation of red, green and blue in [0, 1].
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, backbone: TimmBackbone, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.size = size
        self.width, self.tokens = backbone.width, backbone.tokens
        self.register_buffer("mean_C11", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std_C11", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images.

        Args:
            pixels: uint8 ``[S, 3, H, W]``.

        Returns:
            ``[S, P, D]``
        """
        tokens_SPD: Tensor = self.backbone((pixels.to(self.mean_C11.dtype) - self.mean_C11) / self.std_C11)
        return tokens_SPD

    def blank(self) -> dict[str, Tensor]:
        """A grey picture."""
        return {"pixels": torch.full((1, 3, self.size, self.size), 128, dtype=torch.uint8, device=self.mean_C11.device)}

    def layers(self) -> list[list[nn.Parameter]]:
        """See :meth:`TimmBackbone.layers`."""
        return self.backbone.layers()

    def checkpoint_activations(self) -> None:
        """See :class:`Encoder`."""
        self.backbone.checkpoint_activations("model.encoders.image")


def build_image(spec: TimmImage, inputs: ImageInput, load_weights: bool) -> TimmImageEncoder:
    """Build the encoder that ``spec`` describes.

    Raises:
        UserError: see :func:`build_backbone`.
    """
    backbone = build_backbone(spec, (3, inputs.size, inputs.size), load_weights, "model.encoders.image")
    facts: dict[str, tuple[float, ...]] = backbone.model.pretrained_cfg  # type: ignore[assignment]  # set by timm
    return TimmImageEncoder(backbone, inputs.size, spec.mean or facts["mean"], spec.std or facts["std"])
