"""The policy that reviewers apply: its text by label, and the version that is stored with each answer."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from vigil_data.errors import UserError
from vigil_data.importers.collection import load_taxonomy
from vigil_data.taxonomy import Label, Taxonomy


class ReviewPolicy(NamedTuple):
    """What reviewers apply.

    Attributes:
        taxonomy: the policy text of the labels, if there is one.
        version: stored with each answer; empty if unknown.
    """

    taxonomy: Taxonomy | None = None
    version: str = ""

    def text(self, name: str) -> dict[str, Any]:
        """Return a label's heading and policy text."""
        label = _labels(self.taxonomy).get(name, Label())
        return {
            "heading": label.heading(name, 0),
            "question": label.instruction or label.description,
            "definition": label.definition or (label.description if label.instruction else ""),
            "violates": label.violates,
            "allowed": label.allowed,
            "boundary": [{"example": of.example, "violates": of.violates, "reason": of.reason} for of in label.boundary],
        }


def load_policy(file: Path | None, version: str | None, labels: Collection[str]) -> ReviewPolicy:
    """Return the policy of a review.

    Args:
        file: taxonomy (default: labels have no policy text).
        version: version that is stored (default: name and version of the taxonomy).
        labels: labels that are asked about.

    Raises:
        UserError: if the taxonomy lacks one of the labels.
    """
    if file is None:
        return ReviewPolicy(None, version or "")
    taxonomy = load_taxonomy(file)
    if missing := [label for label in labels if label not in _labels(taxonomy)]:
        raise UserError(
            f"{file}: has no label {', '.join(missing)}, which the queue asks about; name the taxonomy of these labels, or none"
        )
    return ReviewPolicy(taxonomy, f"{taxonomy.name} {taxonomy.version}" if version is None else version)


def _labels(taxonomy: Taxonomy | None) -> dict[str, Label]:
    return {name: label for head in taxonomy.heads.values() for name, label in head.labels.items()} if taxonomy else {}
