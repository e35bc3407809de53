"""YAML schema of formats: one page for each published guard, as its authors document its prompt and its answer.

Example:
    >>> page = load_format("llama-guard")
    >>> page.taxonomies["safety"]["hate"]
    ('S10',)
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from vigil_data.errors import UserError
from vigil_data.specs import Spec
from vigil_data.taxonomy import Name
from vigil_data.yaml_files.read_spec import read_spec
from vigil_data.yaml_files.shipped_files import named_file, shipped_names
from vigil_data.yaml_files.yaml_tree import nearest

SHIPPED = Path(__file__).parent / "formats"
"""Folder of the formats that come with the package."""

ANY = "any"
"""What a label is mapped to if the guard's verdict itself, whatever the category, is the label."""

Turn = Literal["prompt", "response"]
TURNS: tuple[Turn, ...] = ("prompt", "response")
"""What is judged: a text as a user's message, or texts as an assistant's answer to the texts of role context."""

FormatName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
Share = Annotated[float, Field(ge=0, le=1)]


class Category(Spec):
    """A category of the guard."""

    name: str = Field(min_length=1, description="what the guard calls it")
    prompt: str = Field("", description="its definition for the turn prompt, {{ category.definition }} in the template")
    response: str = Field("", description="its definition for the turn response (default: that of prompt)")


class NamedCategories(Spec):
    """The categories that the guard names after its verdict; the first one is read."""

    after: tuple[str, ...] = Field(min_length=1, description="choices after which it names categories")
    before: str = Field(description="text between the verdict and the first category")
    written: Literal["id", "name"] = Field("name", description="whether it writes the key or the name of a category")


class Answer(Spec):
    """One answer of the guard: the text before it, and the texts that it chooses from."""

    before: str = Field("", description="text that the guard writes before it, after the prompt or the previous answer")
    choices: Mapping[str, Share] = Field(
        min_length=2, description="text of each choice, to the share of it that counts as positive (of the last answer)"
    )
    named: NamedCategories | None = Field(None, description="the categories that it names then; last answer alone")


class TurnFormat(Spec):
    """Prompt and answers for one turn: exactly one of ``template``, and ``instruction`` with ``body``."""

    template: str | None = Field(None, description="the complete prompt as a Jinja template, with the model's special tokens")
    instruction: str | None = Field(None, description="the model's task, for its chat template: the system message if it has one")
    body: str | None = Field(None, description="the user's message, for the model's chat template")
    answers: tuple[Answer, ...] = Field(min_length=1, description="what the guard writes, in order; the last one is the score")
    without: tuple[str, ...] = Field((), description="keys of categories that this turn does not have")

    @model_validator(mode="after")
    def _one_prompt(self) -> "TurnFormat":
        if (self.template is None) == (self.body is None) or (self.body is None) != (self.instruction is None):
            raise ValueError("must have either template, or instruction and body")
        if any(answer.named is not None for answer in self.answers[:-1]):
            raise ValueError("named: only the last answer names categories")
        named = self.answers[-1].named
        if named is not None and (unknown := [choice for choice in named.after if choice not in self.answers[-1].choices]):
            raise ValueError(f"named.after has {unknown[0]!r}, which is not a choice")
        return self


class GuardFormat(Spec):
    """Description of one guard's format."""

    model_config = ConfigDict(title="Format")

    name: FormatName = Field(description="its name")
    title: str = Field(description="the models that it is for, with their authors and year")
    url: str = Field("", description="model card")
    licence: str = Field("", description="licence of the weights")
    notes: str = Field("", description="what a user should know before relying on the scores")
    special_tokens: tuple[str, ...] = Field((), description="special tokens of the templates; a model without one is refused")
    asks: Literal["once", "each", "policy"] = Field(
        description="once: about all categories in one prompt; each: about one category per prompt; policy: about the policy "
        "text of one label of the taxonomy per prompt"
    )
    prompt: TurnFormat = Field(description="a text as a user's message")
    response: TurnFormat | None = Field(None, description="texts as an assistant's answer")
    categories: Mapping[str, Category] = Field({}, description="key to the category")
    taxonomies: Mapping[Name, Mapping[Name, tuple[str, ...]]] = Field(
        {}, description="taxonomy, to its labels, each to keys of categories, or to any: the verdict itself"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "GuardFormat":
        if mistakes := list(self._mistakes()):
            raise ValueError("\n".join(mistakes))
        return self

    def turn(self, turn: Turn) -> TurnFormat:
        """Return prompt and answers for a turn.

        Raises:
            UserError: if the format has none for it.
        """
        found = self.prompt if turn == "prompt" else self.response
        if found is None:
            raise UserError(f"--turn {turn}: format {self.name} judges prompts alone")
        return found

    def _mistakes(self) -> Iterator[str]:
        if (self.asks == "policy") != (not self.categories) and self.asks != "once":
            yield "categories: with asks each, name the categories; with asks policy, the taxonomy's labels are the categories"
        for turn in (self.prompt, self.response):
            if turn is not None and turn.answers[-1].named is not None and self.asks != "once":
                yield "answers: a guard that is asked about one category names none; remove named, or write asks: once"
        for taxonomy, mapping in self.taxonomies.items():
            for label, keys in mapping.items():
                for unknown in (key for key in keys if key != ANY and key not in self.categories):
                    what = f"names {unknown}, which is not a category{nearest(unknown, list(self.categories))}"
                    yield f"taxonomies.{taxonomy}.{label} {what}"
                if ANY in keys and self.asks != "once":
                    yield f"taxonomies.{taxonomy}.{label}: any needs asks: once"


def shipped_formats() -> list[str]:
    """Return the names of the formats that come with the package, in order."""
    return shipped_names(SHIPPED)


def format_file(name: str) -> Path:
    """Return the file of a format: a shipped one by its name, or the user's own by its path.

    Raises:
        UserError: if there is none, with the nearest name.
    """
    return named_file(name, SHIPPED, "format", "vigil guard formats")


def load_format(name: str) -> GuardFormat:
    """Read a format.

    Args:
        name: a shipped format, or the path of a YAML file.

    Raises:
        UserError: one line ``FILE:LINE: key: what`` for each mistake found.
    """
    return read_spec(GuardFormat, format_file(name), "format", "name: my-guard")
