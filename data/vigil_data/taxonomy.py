"""Taxonomy: labels with heads, parents, severities, descriptions and policy text."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from vigil_data.specs import Spec

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


class Boundary(Spec):
    """An example near the boundary of a label, for reviewers."""

    example: str = Field(min_length=1, description="the content, in neutral words")
    violates: bool = Field(description="whether the label applies")
    reason: str = Field(min_length=1, description="why, or why not")


class Paraphrase(Spec):
    """Other words for the policy text of a label, of the same meaning; what is left out stays as the label has it."""

    name: str = Field("", description="heading in place of the label's name, such as: attacks on a group")
    instruction: str = Field("", description="the label's instruction in other words")
    definition: str = Field("", description="its definition in other words")
    violates: tuple[str, ...] = Field((), description="what the label applies to, in other words or other examples")
    allowed: tuple[str, ...] = Field((), description="what it does not apply to, in other words or other examples")

    @model_validator(mode="after")
    def _some_text(self) -> "Paraphrase":
        if not any(getattr(self, name) for name in type(self).model_fields):
            raise ValueError("has no text; write a definition, or leave the paraphrase out")
        return self


class Label(Spec):
    """A label of the taxonomy."""

    description: str = Field("", description="definition for reviewers, in one line")
    instruction: str = Field("", description="the question that a reviewer, or a model that follows instructions, answers")
    definition: str = Field("", description="the complete definition")
    violates: tuple[str, ...] = Field((), description="content that the label applies to")
    allowed: tuple[str, ...] = Field((), description="content that it does not apply to, though it may look as if it did")
    boundary: tuple[Boundary, ...] = Field((), description="examples near the boundary")
    paraphrases: tuple[Paraphrase, ...] = Field(
        (), description="the policy text in other words, read in training on policies alone (default: none)"
    )
    parent: Name | None = Field(None, description="the more general label of this taxonomy")
    severity: float = Field(1.0, ge=0, description="harm of a missed positive, relative to other labels")

    def worded(self, paraphrase: int) -> "Label":
        """Return the label in the words of a paraphrase: 0 is the label itself, p its p-th paraphrase."""
        if paraphrase == 0:
            return self
        words = self.paraphrases[paraphrase - 1]
        return self.model_copy(update={k: v for k in type(words).model_fields if k != "name" and (v := getattr(words, k))})

    def heading(self, name: str, paraphrase: int) -> str:
        """Return what stands above the policy text: the label's name as words, or that of a paraphrase that has its own.

        Args:
            name: the label's name in its taxonomy.
            paraphrase: see :meth:`worded`.
        """
        own = self.paraphrases[paraphrase - 1].name if paraphrase else ""
        return own or name.replace("_", " ")

    @model_validator(mode="after")
    def _paraphrases_differ(self) -> "Label":
        texts = [(self.worded(p), self.heading("", p)) for p in range(len(self.paraphrases) + 1)]
        for place, text in enumerate(texts):
            if (first := texts.index(text)) < place:
                other = "the policy text itself" if first == 0 else f"paraphrase {first}"
                raise ValueError(f"paraphrase {place} equals {other}; change it or leave it out")
        return self


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

    def with_parents(self, targets: Mapping[str, float | None]) -> dict[str, float | None]:
        """Return targets in which each parent follows from its children where they are known.

        A parent has at least the target of each known child, as in the models
        (:meth:`vigil_modeling.label_structure.LabelStructure.constrain`): it is 1 if a child is 1, and 0 only if it is stated
        to be and no child is known to be more, or if all of its children are known to be 0. Otherwise it stays unknown.

        Args:
            targets: label to its target, ``None`` or absent where unknown; labels that the taxonomy lacks are kept as they are.

        Example:
            >>> taxonomy.with_parents({"threat": 1.0, "insult": None})  # both have the parent abuse
            {'threat': 1.0, 'insult': None, 'abuse': 1.0}
        """
        complete = dict(targets)
        for parent, children in self._families:
            below = any_of([complete.get(child) for child in children])
            stated = complete.get(parent)
            if stated is not None:
                known = [value for child in children if (value := complete.get(child)) is not None]
                complete[parent] = max([stated, *known])
            elif below is not None:
                complete[parent] = below
        return complete

    @cached_property
    def _families(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each parent with its children, those deepest in the hierarchy first."""
        labels = {name: label for head in self.heads.values() for name, label in head.labels.items()}
        children: dict[str, list[str]] = {}
        depth: dict[str, int] = {}
        for name, label in labels.items():
            above, steps = label.parent, 0
            if above is not None:
                children.setdefault(above, []).append(name)
            while above is not None:
                above, steps = labels[above].parent, steps + 1
            depth[name] = steps
        return tuple((name, tuple(children[name])) for name in sorted(children, key=lambda name: -depth[name]))

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


def any_of(targets: Iterable[float | None]) -> float | None:
    """Return the target of a label that is positive if any of others is.

    It is 1 if a target is known to be 1, the largest if all are known, and unknown (``None``) otherwise, also if there are none.
    """
    values = list(targets)
    known = [value for value in values if value is not None]
    return max(known) if known and (len(known) == len(values) or max(known) == 1) else None
