"""The labels: their order, the heads that group them, their parents, severities and descriptions."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from vigil_data.specs import Spec

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


class Label(Spec):
    """One thing that an item can be."""

    description: str = Field("", description="what a reviewer is told")
    parent: Name | None = Field(None, description="a label of this taxonomy that this one is a case of")
    severity: float = Field(1.0, ge=0, description="how much harm a miss does, relative to other labels")


class Head(Spec):
    """A group of labels that share the last layers of the model."""

    description: str = ""
    labels: Mapping[Name, Label] = Field(min_length=1)


class Taxonomy(Spec):
    """All labels, in the order that every ``[.., L]`` array follows: head by head, as written."""

    name: Name
    version: int = Field(1, ge=1)
    heads: Mapping[Name, Head] = Field(min_length=1)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in order."""
        return tuple(name for head in self.heads.values() for name in head.labels)

    @cached_property
    def head_sizes(self) -> dict[str, int]:
        """Head to the number of its labels; labels of a head are neighbours in :attr:`labels`."""
        return {name: len(head.labels) for name, head in self.heads.items()}

    @model_validator(mode="after")
    def _labels_are_sound(self) -> "Taxonomy":
        known: dict[str, Label] = {}
        for head in self.heads.values():
            for name, label in head.labels.items():
                if name in known:
                    raise ValueError(f"label {name} stands in two heads")
                known[name] = label
        for name in known:
            seen = [name]
            while (parent := known[seen[-1]].parent) is not None:
                if parent not in known:
                    raise ValueError(f"parent {parent} of label {seen[-1]} is not a label")
                if parent in seen:
                    raise ValueError(f"labels {' -> '.join([*seen, parent])} are parents in a circle")
                seen.append(parent)
        return self
