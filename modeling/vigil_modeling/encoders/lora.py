"""Low-rank adapters (LoRA, Hu et al. 2022) on the linear layers of an encoder, through the peft library."""

from torch import nn

from vigil_data.errors import UserError
from vigil_modeling.encoders.base import Encoder
from vigil_modeling.specs import Lora


def add_lora(encoder: Encoder, spec: Lora, where: str) -> None:
    """Add an adapter to linear layers of an encoder, and exclude all other weights of its model from training.

    Weights of the encoder itself, such as the query of its pooling, are trained.
    The modules keep their places and names, so that layers, learning-rate factors and activation checkpointing work as before;
    an exported graph has the adapters merged into the weights.

    Args:
        encoder: modified in place; the adapters' weights come from torch's global generator.
        spec: rank, scale, dropout and layers.
        where: key path of the encoder in the recipe, for errors.

    Raises:
        UserError: if peft is not installed, or a target matches no linear layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(f"{where}.lora: peft is not installed; install vigil with its lora extra") from error

    linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    targets = [name for name in linear if not spec.targets or name.split(".")[-1] in spec.targets]
    found = {name.split(".")[-1] for name in linear}
    if absent := [target for target in spec.targets if target not in found]:
        raise UserError(
            f"{where}.lora.targets: no linear layer is called {', '.join(absent)}; there are {', '.join(sorted(found)) or 'none'}"
        )
    if not targets:
        raise UserError(f"{where}.lora: the encoder has no linear layer")
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, target_modules=targets)
    inject_adapter_in_model(config, encoder)
    for parameter in encoder.parameters(recurse=False):
        parameter.requires_grad_(True)
