"""Sources of weights, tokenizers and other files in a recipe: the hub, this machine, or an installed package."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field


class Spec(BaseModel):
    """Base class of recipe sections: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


def default_kind(kind: str) -> Discriminator:
    """Return the annotation of a union of specs in which a block without ``kind`` has the given one; each member needs its tag.

    Example:
        >>> AnySpec = Annotated[Annotated[A, Tag("a")] | Annotated[B, Tag("b")], default_kind("a")]
    """

    def kind_of(value: Any) -> str:
        found = value.get("kind", kind) if isinstance(value, dict) else getattr(value, "kind", kind)
        return found if isinstance(found, str) else repr(found)  # a list could not be looked up

    return Discriminator(kind_of)


class Hub(Spec):
    """A repository of the Hugging Face hub, or one file or folder within it."""

    kind: Literal["hub"] = "hub"
    id: str = Field(description="owner/name on the hub")
    revision: str | None = Field(None, description="branch, tag or commit; use a commit for reproducible runs")
    path: str = Field("", description="file or folder within the repository (default: the complete repository)")


class Local(Spec):
    """A file or folder on this machine."""

    kind: Literal["local"] = "local"
    path: str = Field(description="absolute path, or path relative to the working directory")


class Package(Spec):
    """A file or folder within an installed Python package, which needs no download."""

    kind: Literal["package"] = "package"
    package: str = Field(description="import name of the package")
    path: str = Field("", description="file or folder within the package")


Source = Annotated[Hub | Local | Package, Field(discriminator="kind")]
