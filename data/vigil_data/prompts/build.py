"""Pieces of a recipe's prompt, from its tokenizer and chat template."""

from pathlib import Path

from vigil_data.decode.text import tokenizer_definition, tokenizer_file
from vigil_data.errors import UserError, shown
from vigil_data.prompts.assemble import content_room
from vigil_data.prompts.chat_template import ChatTemplate, read_chat_template, render
from vigil_data.prompts.clauses import Clause, clauses_of
from vigil_data.prompts.pieces import HEADINGS, PromptPieces
from vigil_data.prompts.policy_sampling import training_clauses
from vigil_data.prompts.specs import NoTemplate, PolicyTraining, PromptSpec
from vigil_data.prompts.tokenizer import PromptTokenizer
from vigil_data.source_specs import Source
from vigil_data.sources import resolve
from vigil_data.taxonomy import Taxonomy

POLICY_HEADING, CONTENT_HEADING, GAP, EMPTY = "Policy:\n", "Content:", " ---\n", " (nothing)"
"""Pieces are tokenized each by itself. Servers and chat templates tokenize a whole text at once, and many tokenizers join a full
stop and the line breaks after it, or two line breaks. So that tokens are the same, what follows a free text begins with a
space and a sign, and no piece ends with two line breaks."""


def prompt_tokenizer(source: Source) -> PromptTokenizer:
    """Load the tokenizer of a recipe.

    Raises:
        UserError: if it is missing or invalid.
    """
    definition = tokenizer_definition(source)
    try:
        return PromptTokenizer(definition)
    except UserError as error:
        raise UserError(f"{tokenizer_file(source)}: {error}") from None


def build_prompt(
    spec: PromptSpec, tokenizer_source: Source, taxonomy: Taxonomy, policies: PolicyTraining | None = None
) -> tuple[PromptPieces, tuple[Clause, ...]]:
    """Tokenize the constant pieces of a prompt and the policy text of each label.

    Args:
        spec: the recipe's section ``model.prompt``.
        tokenizer_source: ``inputs.text.tokenizer``.
        taxonomy: the labels.
        policies: ``model.policies``, with which the clauses of training on policies follow those of the labels (default: none).

    Raises:
        UserError: as for :func:`build_pieces`, if a label has no policy text, or if a policy leaves no room for content.
    """
    tokenizer = prompt_tokenizer(tokenizer_source)
    pieces = pieces_of(spec, tokenizer, find_template(spec, tokenizer_source))
    clauses = clauses_of(taxonomy, tokenizer.text, spec.sections)
    content_room(pieces, clauses)
    if policies is not None:
        varied = training_clauses(taxonomy, policies, tokenizer.text, spec.sections)
        try:
            content_room(pieces, varied, policies.most_clauses(len(clauses)))
        except UserError as error:
            raise UserError(f"model.policies: {error}, or lower max_clauses") from None
        clauses = (*clauses, *varied[len(clauses) :])
    return pieces, clauses


def build_pieces(spec: PromptSpec, tokenizer_source: Source) -> PromptPieces:
    """Tokenize the constant pieces of a prompt.

    Args:
        spec: the recipe's section ``model.prompt``.
        tokenizer_source: ``inputs.text.tokenizer``.

    Raises:
        UserError: if tokenizer or chat template is missing or unusable, or an answer is not one token.
    """
    return pieces_of(spec, prompt_tokenizer(tokenizer_source), find_template(spec, tokenizer_source))


def find_template(spec: PromptSpec, tokenizer_source: Source) -> ChatTemplate:
    """Read the chat template of a recipe: its own, or that of the tokenizer's folder.

    Raises:
        UserError: if there is none.
    """
    if isinstance(spec.chat_template, NoTemplate):
        return ChatTemplate(None, {}, "plain text")
    home = resolve(tokenizer_source)
    if spec.chat_template is None:
        return read_chat_template(home)
    found = read_chat_template(resolve(spec.chat_template))
    if found.tokens:
        return found
    return ChatTemplate(found.text, special_tokens_of(home), found.origin)


def special_tokens_of(path: Path) -> dict[str, str]:
    """Return the named special tokens of a tokenizer's folder or file; empty if it names none."""
    try:
        return read_chat_template(path).tokens
    except UserError:
        return {}


def pieces_of(spec: PromptSpec, tokenizer: PromptTokenizer, template: ChatTemplate) -> PromptPieces:
    """Tokenize the constant pieces of a prompt; see :func:`build_pieces`."""
    rendered = render(template)
    before = tokenizer.beginning() if template.text is None else tokenizer.template(rendered.before)
    header = [*before, *tokenizer.text(spec.instruction)]
    header += tokenizer.text(GAP) if rendered.between is None else tokenizer.template(rendered.between)
    headings = {m: {role: tuple(tokenizer.text(heading(m, role))) for role in roles} for m, roles in HEADINGS.items()}
    return PromptPieces(
        order=spec.order,
        max_tokens=spec.max_tokens,
        row_tokens=spec.row_tokens,
        header=tuple(header),
        policy_heading=tuple(tokenizer.text(POLICY_HEADING)),
        content_heading=tuple(tokenizer.text(CONTENT_HEADING)),
        gap=tuple(tokenizer.text(GAP)),
        empty=tuple(tokenizer.text(EMPTY)),
        question=(*tokenizer.text(GAP + question_text(spec)), *tokenizer.template(rendered.after)),
        headings=headings,
        answers=spec.answers,
        answer_ids=_answer_ids(spec, tokenizer),
        sections=spec.sections,
    )


def heading(modality: str, role: str) -> str:
    """Return what stands before a segment."""
    return f" # {HEADINGS[modality][role]}\n"


def question_text(spec: PromptSpec) -> str:
    """Return the last words of a prompt."""
    yes, no = spec.answers
    return spec.question.replace("{yes}", yes).replace("{no}", no)


def _answer_ids(spec: PromptSpec, tokenizer: PromptTokenizer) -> tuple[int, ...]:
    split = {answer: tokenizer.text(answer) for answer in spec.answers}
    if wrong := [answer for answer, ids in split.items() if len(ids) != 1]:
        listed = ", ".join(f"{shown(answer)} is {len(split[answer])}" for answer in wrong)
        raise UserError(
            f"model.prompt.answers: each must be one token of the tokenizer, but {listed}; "
            "choose other words, such as true and false"
        )
    ids = tuple(ids[0] for ids in split.values())
    if ids[0] == ids[1]:
        raise UserError(f"model.prompt.answers: the tokenizer reads {spec.answers[0]} and {spec.answers[1]} as the same token")
    return ids
