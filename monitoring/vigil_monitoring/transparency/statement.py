"""Statement of reasons as the European Union's transparency database takes it (Articles 17 and 24(5)).

Fields, codes, lengths and which of them are required: documentation of the DSA Transparency Database, "API documentation" of
version 2 (in force since 1 July 2025), https://transparency.dsa.ec.europa.eu/page/api-documentation, and the rules of its
published source (https://github.com/digital-services-act/transparency-database, StatementStoreRequest), both read on
2026-11-29. Fields that a traffic log cannot fill (account type, source identity, product identifiers) are left out; they are
optional there.

Its JSON Schema is docs/statement.schema.json (:mod:`.statement_schema`).
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from vigil_data.specs import Spec
from vigil_monitoring.transparency.codes import (
    CATEGORIES,
    OTHER,
    Account,
    AutomatedDecision,
    ContentType,
    Country,
    Monetary,
    Provision,
    SourceType,
    Visibility,
)

SOURCE = (
    "Fields of the DSA Transparency Database, API version 2: https://transparency.dsa.ec.europa.eu/page/api-documentation and "
    "https://github.com/digital-services-act/transparency-database, read on 2026-11-29."
)

Text500 = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Text2000 = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Text5000 = Annotated[str, StringConstraints(min_length=1, max_length=5000)]
Day = Annotated[str, StringConstraints(pattern=r"^(20[0-2][0-9]|203[0-7])-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$")]
"""A day from 2000-01-01 to 2037-12-31."""
LaterDay = Annotated[str, StringConstraints(pattern=r"^20(2[0-9]|3[0-7])-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$")]
"""A day from 2020-01-01."""
if TYPE_CHECKING:
    CategoryCode = str
    Keyword = str
else:
    CategoryCode = Literal[tuple(CATEGORIES)]
    Keyword = Literal[tuple(dict.fromkeys([*(code for of in CATEGORIES.values() for code in of.subcategories), OTHER]))]


def _if(field: str, value: Any, required: list[str], *, otherwise_absent: bool = True) -> dict[str, Any]:
    """Return the JSON Schema of: if a field has a value, others are required, and else they are absent."""
    rule: dict[str, Any] = {"if": {"properties": {field: value}, "required": [field]}, "then": {"required": required}}
    if otherwise_absent:
        rule["else"] = {"properties": dict.fromkeys(required, False)}
    return rule


class Statement(Spec):
    """One statement of reasons. Optional fields without a value are left out of the JSON."""

    model_config = ConfigDict(
        json_schema_extra={
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$comment": SOURCE,
            "anyOf": [{"required": [f"decision_{kind}"]} for kind in ("visibility", "monetary", "provision", "account")],
            "allOf": [
                _if("decision_visibility", {"contains": {"const": "DECISION_VISIBILITY_OTHER"}}, ["decision_visibility_other"]),
                _if("decision_monetary", {"const": "DECISION_MONETARY_OTHER"}, ["decision_monetary_other"]),
                _if("content_type", {"contains": {"const": "CONTENT_TYPE_OTHER"}}, ["content_type_other"]),
                _if(
                    "decision_ground",
                    {"const": "DECISION_GROUND_ILLEGAL_CONTENT"},
                    ["illegal_content_legal_ground", "illegal_content_explanation"],
                ),
                _if(
                    "decision_ground",
                    {"const": "DECISION_GROUND_INCOMPATIBLE_CONTENT"},
                    ["incompatible_content_ground", "incompatible_content_explanation"],
                ),
            ],
        }
    )

    decision_visibility: Annotated[tuple[Visibility, ...], Field(min_length=1)] | None = Field(
        None, description="restrictions of the visibility"
    )
    decision_visibility_other: Text500 | None = Field(None, description="what DECISION_VISIBILITY_OTHER stands for")
    decision_monetary: Monetary | None = Field(None, description="restriction of payments")
    decision_monetary_other: Text500 | None = Field(None, description="what DECISION_MONETARY_OTHER stands for")
    decision_provision: Provision | None = Field(None, description="restriction of the service")
    decision_account: Account | None = Field(None, description="restriction of the account")
    decision_ground: Literal["DECISION_GROUND_ILLEGAL_CONTENT", "DECISION_GROUND_INCOMPATIBLE_CONTENT"]
    decision_ground_reference_url: Annotated[str, StringConstraints(pattern=r"^https?://\S+$", max_length=500)] | None = Field(
        None, description="address of the terms and conditions, or of the law"
    )
    illegal_content_legal_ground: Text500 | None = Field(None, description="legal ground")
    illegal_content_explanation: Text2000 | None = Field(None, description="why the content is illegal on that ground")
    incompatible_content_ground: Text500 | None = Field(None, description="contractual ground")
    incompatible_content_explanation: Text2000 | None = Field(None, description="why the content is incompatible with it")
    category: CategoryCode = Field(description="category")
    category_specification: Annotated[tuple[Keyword, ...], Field(min_length=1)] = Field(description="sub-categories")
    category_specification_other: Text500 | None = Field(None, description="what KEYWORD_OTHER stands for")
    content_type: Annotated[tuple[ContentType, ...], Field(min_length=1)] = Field(description="types of the content")
    content_type_other: Text500 | None = Field(None, description="what CONTENT_TYPE_OTHER stands for")
    content_language: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")] | None = Field(None, description="ISO 639-1 code")
    content_date: Day = Field(description="day on which the content was posted")
    territorial_scope: Annotated[tuple[Country, ...], Field(min_length=1)] = Field(description="countries of the restriction")
    application_date: LaterDay = Field(description="day from which the restriction applies")
    decision_facts: Text5000 = Field(description="facts and circumstances relied on")
    source_type: SourceType = Field(description="what led to the decision")
    automated_detection: Literal["Yes", "No"] = Field(description="whether automated means found the content")
    automated_decision: AutomatedDecision = Field(description="whether automated means took the decision")
    puid: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,500}$")] = Field(
        description="unique identifier of the statement"
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> "Statement":
        if not (self.decision_visibility or self.decision_monetary or self.decision_provision or self.decision_account):
            raise ValueError("has no restriction; give one of decision_visibility, _monetary, _provision and _account")
        illegal = self.decision_ground == "DECISION_GROUND_ILLEGAL_CONTENT"
        for needed, names in (
            ("DECISION_VISIBILITY_OTHER" in (self.decision_visibility or ()), ("decision_visibility_other",)),
            (self.decision_monetary == "DECISION_MONETARY_OTHER", ("decision_monetary_other",)),
            ("CONTENT_TYPE_OTHER" in self.content_type, ("content_type_other",)),
            (illegal, ("illegal_content_legal_ground", "illegal_content_explanation")),
            (not illegal, ("incompatible_content_ground", "incompatible_content_explanation")),
        ):
            for name in names:
                if needed != (getattr(self, name) is not None):
                    raise ValueError(f"{name} is {'required' if needed else 'not allowed'} here")
        return self
