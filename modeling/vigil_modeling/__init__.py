"""Plain ``nn.Module`` components: encoders, fusion, heads, losses, and the safety model that joins them.

Example:
    >>> model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
    >>> model(batch).logits_NL.shape
    torch.Size([32, 5])
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_modeling.encoders import Encoder as Encoder
    from vigil_modeling.encoders import build_encoder as build_encoder
    from vigil_modeling.fusion import Fusion as Fusion
    from vigil_modeling.fusion import build_fusion as build_fusion
    from vigil_modeling.losses import MaskedLoss as MaskedLoss
    from vigil_modeling.multimodal_model import Prediction as Prediction
    from vigil_modeling.safety_model import SafetyModel as SafetyModel
    from vigil_modeling.safety_model import build_model as build_model
    from vigil_modeling.specs import ModelSpec as ModelSpec

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Encoder": "vigil_modeling.encoders",
        "Fusion": "vigil_modeling.fusion",
        "MaskedLoss": "vigil_modeling.losses",
        "ModelSpec": "vigil_modeling.specs",
        "Prediction": "vigil_modeling.multimodal_model",
        "SafetyModel": "vigil_modeling.safety_model",
        "build_encoder": "vigil_modeling.encoders",
        "build_fusion": "vigil_modeling.fusion",
        "build_model": "vigil_modeling.safety_model",
    },
)
