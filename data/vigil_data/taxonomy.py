"""Taxonomy: labels with heads, parents, severities and descriptions."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from vigil_data.specs import Spec

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


class Label(Spec):
    """A label of the taxonomy."""

    description: str = Field("", description="definition for reviewers")
    parent: Name | None = Field(None, description="the more general label of this taxonomy")
    severity: float = Field(1.0, ge=0, description="harm of a missed positive, relative to other labels")


class Head(Spec):
    """A group of labels that share the model's last layers."""

    description: str = Field("", description="what the labels of the head have in common")
    labels: Mapping[Name, Label] = Field(min_length=1, description="label to its properties")


class Taxonomy(Spec):
    """All labels; every ``[.., L]`` array follows their order, head by head as written."""

    name: Name = Field(description="name of the taxonomy")
    version: int = Field(1, ge=1, description="raised with every change of meaning")
    heads: Mapping[Name, Head] = Field(min_length=1, description="head, a group of labels, to its properties")

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Label names, in order."""
        return tuple(name for head in self.heads.values() for name in head.labels)

    @cached_property
    def head_sizes(self) -> dict[str, int]:
        """Head to its number of labels; labels of a head are adjacent in :attr:`labels`."""
        return {name: len(head.labels) for name, head in self.heads.items()}

    @model_validator(mode="after")
    def _labels_are_sound(self) -> "Taxonomy":
        known: dict[str, Label] = {}
        for head in self.heads.values():
            for name, label in head.labels.items():
                if name in known:
                    raise ValueError(f"label {name} is in two heads; keep it in one")
                known[name] = label
        for name in known:
            seen = [name]
            while (parent := known[seen[-1]].parent) is not None:
                if parent not in known:
                    raise ValueError(f"parent {parent} of label {seen[-1]} is not a label")
                if parent in seen:
                    raise ValueError(f"labels {' -> '.join([*seen, parent])} are a cycle of parents")
                seen.append(parent)
        return self
