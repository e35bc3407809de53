"""Where a recipe takes weights, tokenizers and other files from: the hub, this machine, or an installed package."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Spec(BaseModel):
    """Base of every spec: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class Hub(Spec):
    """A repository of the Hugging Face hub, or one file or folder within it."""

    kind: Literal["hub"] = "hub"
    id: str = Field(description="owner/name on the hub")
    revision: str | None = Field(None, description="branch, tag or commit; name a commit for runs that can be repeated")
    path: str = Field("", description="file or folder within the repository; empty for the whole of it")


class Local(Spec):
    """A file or folder on this machine."""

    kind: Literal["local"] = "local"
    path: str = Field(description="absolute, or relative to the folder where the command runs")


class Package(Spec):
    """A file or folder that ships inside an installed Python package, so that nothing is downloaded."""

    kind: Literal["package"] = "package"
    package: str = Field(description="import name of the package")
    path: str = Field("", description="file or folder within the package")


Source = Annotated[Hub | Local | Package, Field(discriminator="kind")]
