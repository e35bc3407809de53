"""AdamW, with a learning rate and weight decay for each group of parameters."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import AdamW

from vigil_modeling.multimodal_model import MultimodalModel
from vigil_modeling.specs import AnyModelSpec
from vigil_training.recipe.specs import OptimizerSpec


def build_optimizer(
    model: MultimodalModel, spec: AnyModelSpec, optimizer: OptimizerSpec, releases: Mapping[str, int] | None = None
) -> AdamW:
    """Build AdamW (Loshchilov and Hutter 2019) over the trained parameters of a model.

    Args:
        model: holds the parameters.
        spec: learning-rate factors of the encoders.
        optimizer: peak rate, weight decay, betas and eps.
        releases: see :func:`parameter_groups`.
    """
    groups = parameter_groups(model, spec, optimizer, releases)
    decay, betas, eps = optimizer.weight_decay, optimizer.betas, optimizer.eps
    return AdamW(groups, lr=optimizer.lr, betas=betas, eps=eps, weight_decay=decay, fused=True)


def parameter_groups(
    model: MultimodalModel, spec: AnyModelSpec, optimizer: OptimizerSpec, releases: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """Group trained parameters by learning rate and weight decay, in the form that torch optimizers take.

    Parameters of an encoder have the rate ``lr * lr_factor``, times ``layer_decay`` for each of its layers above them (as in
    ELECTRA, Clark et al. 2020, appendix A). Biases, norms and other vectors are not decayed.

    Args:
        model: holds the parameters.
        spec: learning-rate factors of the encoders.
        optimizer: peak rate and weight decay.
        releases: name of a parameter to the optimizer steps before it is trained (default: 0). Each group has one ``release``.
    """
    factors: dict[int, float] = {}
    for modality in model.modalities:
        encoder_spec, encoder = getattr(spec.encoders, modality), model.encoder(modality)
        factors |= {id(p): encoder_spec.lr_factor for p in encoder.parameters()}
        for depth, layer in enumerate(reversed(encoder.layers())):
            factors |= {id(p): encoder_spec.lr_factor * encoder_spec.layer_decay**depth for p in layer}
    groups: dict[tuple[float, bool, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (factors.get(id(parameter), 1.0), parameter.ndim > 1, (releases or {}).get(name, 0))
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": optimizer.lr * factor,
            "weight_decay": optimizer.weight_decay if decayed else 0.0,
            "release": release,
        }
        for (factor, decayed, release), parameters in groups.items()
    ]
