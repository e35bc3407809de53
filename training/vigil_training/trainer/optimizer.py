"""AdamW, with a learning rate and weight decay for each group of parameters."""

from typing import Any

from torch import nn
from torch.optim import AdamW

from vigil_modeling.safety_model import SafetyModel
from vigil_modeling.specs import ModelSpec
from vigil_training.recipe.specs import OptimizerSpec


def build_optimizer(model: SafetyModel, spec: ModelSpec, optimizer: OptimizerSpec) -> AdamW:
    """Build AdamW (Loshchilov and Hutter 2019) over the trained parameters of a model.

    Args:
        model: holds the parameters.
        spec: learning-rate factors of the encoders.
        optimizer: peak rate, weight decay, betas and eps.
    """
    groups = parameter_groups(model, spec, optimizer)
    decay, betas, eps = optimizer.weight_decay, optimizer.betas, optimizer.eps
    return AdamW(groups, lr=optimizer.lr, betas=betas, eps=eps, weight_decay=decay, fused=True)


def parameter_groups(model: SafetyModel, spec: ModelSpec, optimizer: OptimizerSpec) -> list[dict[str, Any]]:
    """Group trained parameters by learning rate and weight decay, in the form that torch optimizers take.

    Parameters of an encoder have the rate ``lr * lr_factor``, times ``layer_decay`` for each of its layers above them (as in
    ELECTRA, Clark et al. 2020, appendix A). Biases, norms and other vectors are not decayed.
    """
    factors: dict[int, float] = {}
    for modality in model.modalities:
        encoder_spec, encoder = getattr(spec.encoders, modality), model.encoder(modality)
        factors |= {id(p): encoder_spec.lr_factor for p in encoder.parameters()}
        for depth, layer in enumerate(reversed(encoder.layers())):
            factors |= {id(p): encoder_spec.lr_factor * encoder_spec.layer_decay**depth for p in layer}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((factors.get(id(parameter), 1.0), parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "lr": optimizer.lr * factor, "weight_decay": optimizer.weight_decay if decayed else 0.0}
        for (factor, decayed), parameters in groups.items()
    ]
