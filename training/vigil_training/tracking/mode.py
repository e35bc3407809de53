"""Where a tracked run goes: decided by the recipe, the environment, and whether there is an API key of Weights & Biases."""

import netrc
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vigil_data.errors import UserError

if TYPE_CHECKING:
    from vigil_training.recipe.specs import TrackingSpec

Mode = Literal["offline", "online", "disabled"]


def decide_mode(spec: "TrackingSpec", environment: Mapping[str, str] | None = None) -> tuple[Mode, str]:
    """Return the mode of tracking, and why it is that one.

    Args:
        spec: tracking settings; ``auto`` is the mode in ``WANDB_MODE``, else online with an API key and offline without.
        environment: environment variables (default: those of this process).
    """
    environment = os.environ if environment is None else environment
    if spec.mode != "auto":
        return spec.mode, f"tracking.mode is {spec.mode}"
    match environment.get("WANDB_MODE"):
        case "offline" | "online" | "disabled" as mode:
            return mode, f"WANDB_MODE is {mode}"
    try:
        source = find_api_key(environment)
    except UserError as error:
        return "offline", str(error)
    if source is None:
        return (
            "offline",
            f"no API key for {server_host(environment)}; `wandb login` lets runs be sent while they are trained",
        )
    return "online", source


def server_host(environment: Mapping[str, str]) -> str:
    """Return the host of W&B's server."""
    return re.sub(r"^https?://([^/:]+).*$", r"\1", environment.get("WANDB_BASE_URL", "https://api.wandb.ai"))


def find_api_key(environment: Mapping[str, str]) -> str | None:
    """Return where there is an API key, which is not sent anywhere; ``None`` if there is none.

    Raises:
        UserError: if the file of logins cannot be read.
    """
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if environment.get(name):
            return f"API key in {name}"
    host, file = server_host(environment), Path(environment.get("NETRC", Path.home() / ".netrc"))
    try:
        entry = netrc.netrc(str(file)).authenticators(host) if file.is_file() else None
    except (netrc.NetrcParseError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    return None if entry is None else f"API key for {host} in {file}"
