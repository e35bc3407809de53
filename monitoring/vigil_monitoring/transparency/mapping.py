"""Mapping from a taxonomy's labels and a policy's actions to the categories and restrictions of the Union's templates.

Example:
    >>> mapping = read_mapping(Path("recipes/transparency/comments.yaml"))
    >>> mapping.actions["remove"].visibility
    ('DECISION_VISIBILITY_CONTENT_REMOVED',)
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from vigil_data.errors import UserError
from vigil_data.specs import Spec
from vigil_data.yaml_files.read_spec import read_spec
from vigil_data.yaml_files.yaml_tree import nearest
from vigil_monitoring.transparency.codes import (
    CATEGORIES,
    EEA,
    EU,
    OTHER,
    TERMS_ONLY,
    Account,
    ContentType,
    Country,
    Monetary,
    Provision,
    Visibility,
)

WITHOUT_RESTRICTION = ("allow", "review")
"""Actions of a policy that restrict nothing: no action, and waiting for a reviewer."""

Short = Annotated[str, StringConstraints(min_length=1, max_length=500)]
"""Text of at most 500 characters, as the transparency database takes."""
Long = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Url = Annotated[str, StringConstraints(pattern=r"^https?://\S+$", max_length=500)]


class LabelMapping(Spec):
    """Category of a label, and the ground on which its content is restricted."""

    category: str = Field(description="code of the category")
    subcategory: str = Field(OTHER, description="code of the sub-category (default: captured by no other)")
    ground: Literal["terms", "law"] = Field(
        "terms", description="terms: incompatible with the terms and conditions; law: illegal content"
    )
    reference: Short = Field(description="section of the terms and conditions, or the legal ground")
    explanation: Long | None = Field(
        None, description="why content of the label violates it (default: the taxonomy's definition)"
    )

    @model_validator(mode="after")
    def _codes_exist(self) -> "LabelMapping":
        if self.category not in CATEGORIES:
            raise ValueError(f"category {self.category} does not exist{nearest(self.category, list(CATEGORIES))}")
        known = [*CATEGORIES[self.category].subcategories, OTHER]
        if self.subcategory not in known:
            raise ValueError(f"{self.category} has no sub-category {self.subcategory}; it has {', '.join(known)}")
        if self.ground == "law" and self.category == TERMS_ONLY:
            raise ValueError(
                f"{TERMS_ONLY} is for terms and conditions; with ground law, name the category of the illegal content"
            )
        return self


class ActionMapping(Spec):
    """Restrictions that an action imposes; none if all are empty."""

    visibility: tuple[Visibility, ...] = Field((), description="restrictions of the visibility")
    visibility_other: Short | None = Field(None, description="what DECISION_VISIBILITY_OTHER stands for")
    monetary: Monetary | None = Field(None, description="restriction of payments")
    monetary_other: Short | None = Field(None, description="what DECISION_MONETARY_OTHER stands for")
    provision: Provision | None = Field(None, description="suspension or termination of the service")
    account: Account | None = Field(None, description="suspension or termination of the account")

    @property
    def restricts(self) -> bool:
        """Whether the action restricts anything."""
        return bool(self.visibility or self.monetary or self.provision or self.account)

    @model_validator(mode="after")
    def _other_is_explained(self) -> "ActionMapping":
        if len(set(self.visibility)) < len(self.visibility):
            raise ValueError("visibility names a restriction twice")
        for name, chosen, text in (
            ("visibility", "DECISION_VISIBILITY_OTHER" in self.visibility, self.visibility_other),
            ("monetary", self.monetary == "DECISION_MONETARY_OTHER", self.monetary_other),
        ):
            if chosen != (text is not None):
                raise ValueError(f"{name}_other must be given exactly if {name} is DECISION_{name.upper()}_OTHER")
        return self


class TransparencyMapping(Spec):
    """What a transparency report and statements of reasons need to know beyond the traffic."""

    name: str = Field(min_length=1, description="name of the mapping")
    taxonomy: str | None = Field(
        None, description="taxonomy whose policy text explains the labels: a shipped name, or a file relative to the mapping"
    )
    territory: Literal["EU", "EEA"] | Annotated[tuple[Country, ...], Field(min_length=1)] = Field(
        "EU", description="countries in which the restrictions apply: EU, EEA, or codes such as [DE, FR]"
    )
    terms_url: Url | None = Field(None, description="address of the terms and conditions, for statements of reasons")
    posted: str | None = Field(
        None,
        description="column of the traffic with the time at which the content was posted; time: content is decided when it is "
        "posted; null: unknown, so there is no time to act, and no statement of reasons",
    )
    content_types: Mapping[str, Annotated[tuple[ContentType, ...], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="value of the traffic's content_type to codes (default: by the modalities that are present)",
    )
    actions: Mapping[str, ActionMapping] = Field(description="action of the policy to its restrictions; {} restricts nothing")
    labels: Mapping[str, LabelMapping] = Field(min_length=1, description="label of the taxonomy to its category and ground")

    @property
    def countries(self) -> tuple[Country, ...]:
        """Countries in which the restrictions apply."""
        return EU if self.territory == "EU" else EEA if self.territory == "EEA" else self.territory

    @model_validator(mode="after")
    def _some_restriction(self) -> "TransparencyMapping":
        if wrong := [name for name in WITHOUT_RESTRICTION if name in self.actions and self.actions[name].restricts]:
            raise ValueError(f"actions.{wrong[0]} restricts something; {wrong[0]} is not a restriction")
        if not any(action.restricts for action in self.actions.values()):
            raise ValueError("no action restricts anything, so there is nothing to report")
        return self

    def check(self, where: str, actions: Iterable[str], labels: Iterable[str]) -> None:
        """Check that actions and labels are mapped.

        Args:
            where: file or folder that has them, for the message.
            actions: actions that occur.
            labels: decisive labels that occur.

        Raises:
            UserError: one line for all actions, and one for all labels, that the mapping lacks.
        """
        lacks = [
            f"{where}: {kind} {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in the mapping {self.name}; add "
            f"{'it' if len(missing) == 1 else 'them'} under {kind}s{hint}"
            for kind, missing, hint in (
                (
                    "action",
                    sorted(set(actions) - set(self.actions) - set(WITHOUT_RESTRICTION)),
                    ", with {} if nothing is restricted",
                ),
                ("label", sorted(set(labels) - set(self.labels)), ""),
            )
            if missing
        ]
        if lacks:
            raise UserError(*lacks)


def read_mapping(file: Path) -> TransparencyMapping:
    """Read a mapping.

    Raises:
        UserError: one line ``FILE:LINE: key.path: what`` for each mistake.
    """
    return read_spec(TransparencyMapping, file, "mapping", "name: my-mapping")
