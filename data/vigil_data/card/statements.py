"""What only people can state about a dataset: `card.yaml` in its folder."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from vigil_data.source_specs import Spec
from vigil_data.yaml_files.read_spec import read_spec

STATEMENTS_FILE = "card.yaml"
"""Name of the file in the dataset's folder."""

NOT_STATED = "not stated"
"""What a card prints where nobody has stated anything."""


class SourceTerms(Spec):
    """What the authors of a source ask for."""

    licence: str = Field("", description="licence as an SPDX identifier")
    citation: str = Field("", description="how to cite the source")
    url: str = Field("", pattern=r"^(https?://\S+)?$", description="where the source comes from")


class Statements(Spec):
    """Statements of the people who made a dataset. All are optional; the card prints "not stated" for those that are missing."""

    title: str = Field("", description="name of the dataset for readers (default: the name of its folder)")
    description: str = Field("", description="what the dataset is, in a sentence or two")
    intended_use: str = Field("", description="what it was made for")
    out_of_scope: str = Field("", description="uses for which it is not suited")
    limits: str = Field("", description="known gaps, biases and errors")
    collection: str = Field("", description="where the items come from, and how they were chosen")
    annotators: str = Field("", description="who labelled the items, by which guidelines, and how they agree")
    personal_information: str = Field("", description="personal and sensitive information in the items, and how it is protected")
    maintenance: str = Field("", description="who corrects and erases items, and how to reach them")
    license: str = Field("", description="licence of the whole dataset as an SPDX identifier (default: those of its sources)")
    citation: str = Field("", description="how to cite the dataset")
    url: str = Field("", pattern=r"^(https?://\S+)?$", description="home page of the dataset")
    creators: tuple[str, ...] = Field((), description="people or organizations that made it")
    sources: Mapping[str, SourceTerms] = Field({}, description="value of the column source to its licence and citation")

    def sections(self) -> Mapping[str, str]:
        """Return heading to statement, in the order of the card; missing ones are :data:`NOT_STATED`."""
        stated = {
            "Intended use": self.intended_use,
            "Out of scope": self.out_of_scope,
            "Limits": self.limits,
            "Collection": self.collection,
            "Annotators": self.annotators,
            "Personal information": self.personal_information,
            "Maintenance": self.maintenance,
        }
        return {heading: text.strip() or NOT_STATED for heading, text in stated.items()}


def read_statements(folder: Path) -> Statements:
    """Read the ``card.yaml`` of a dataset; without one, nothing is stated.

    Raises:
        UserError: one line ``FILE:LINE: key.path: what`` for each mistake found.
    """
    file = folder / STATEMENTS_FILE
    return read_spec(Statements, file, "a dataset card", "title: Posts") if file.exists() else Statements()
