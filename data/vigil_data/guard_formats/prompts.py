"""Prompts of a guard's format: rendered once with marks in place of the content, then filled and tokenized for each item.

Templates of a user's own page are run in Jinja's sandbox. Special tokens are recognized in the template alone; see
:mod:`vigil_data.guard_formats.sealed_tokenizer`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vigil_data.dataset.text_content import is_blank
from vigil_data.errors import UserError
from vigil_data.guard_formats.answers import AnswerTree, possible_answers
from vigil_data.guard_formats.page import Category, GuardFormat, Turn, TurnFormat
from vigil_data.items import Item
from vigil_data.prompts.pieces import HEADINGS

if TYPE_CHECKING:
    from vigil_data.guard_formats.sealed_tokenizer import SealedTokenizer
    from vigil_data.prompts.chat_template import RenderedTemplate

TEXT, CONTEXT, POLICY = "text", "context", "policy"
_MARKS = {name: f"⟦vigil {name}⟧" for name in (TEXT, CONTEXT, POLICY)}
_MARKED = re.compile(r"⟦vigil (\w+)⟧")
_SAMPLE = "The weather is fine."
"""Content with which the border between prompt and answer is tokenized; it stands far from that border."""

NO_TEXT, NO_CONTEXT = "no text", "no text of the role context, which would be the prompt of the response"


class Content(NamedTuple):
    """Texts of an item as a guard reads them."""

    text: str
    context: str = ""


class Prompt(NamedTuple):
    """Token ids of a prompt, and whether content was cut to fit."""

    ids: list[int]
    cut: bool


def read_content(item: Item, turn: Turn) -> Content | str:
    """Return the texts of an item, joined; or why there is nothing to judge.

    As a prompt, all texts are one message; one with another role than ``body`` has a heading. As a response, the texts of role
    ``context`` are the user's message.
    """
    texts = [(item.role("text", index), text.strip()) for index, text in enumerate(item.text) if not is_blank(text)]
    if turn == "prompt":
        joined = "\n\n".join(text if role == "body" else f"{HEADINGS['text'][role]}\n{text}" for role, text in texts)
        return Content(joined) if joined else NO_TEXT
    response = "\n\n".join(text for role, text in texts if role != "context")
    context = "\n\n".join(text for role, text in texts if role == "context")
    if not response:
        return NO_TEXT
    return Content(response, context) if context else NO_CONTEXT


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt of a format.

    Attributes:
        category: key of the category that it asks about, or label whose policy it holds; ``None`` if it asks about all.
        parts: template parts, sealed, and names of what stands between them: text, part, text, part, …
        policy: the policy text, if it has one.
        tree: the possible answers.
    """

    category: str | None
    parts: tuple[str, ...]
    policy: str
    tree: AnswerTree

    def prompts(self, contents: Sequence[Content], tokenizer: "SealedTokenizer", max_tokens: int) -> list[Prompt]:
        """Return the tokens of the prompts with the given contents, each with the longest path of the answers within a limit.

        Raises:
            UserError: if the prompt without content is longer.
        """
        room = max_tokens - self.tree.depth
        found = [Prompt(tokens.ids, False) for tokens in tokenizer.encode([self.filled(content) for content in contents])]
        return [p if len(p.ids) <= room else self._cut(c, tokenizer, room) for p, c in zip(found, contents, strict=True)]

    def filled(self, content: Content) -> str:
        """Return the prompt with a content, its special tokens sealed."""
        return "".join(text for text, _ in self._pieces(content))

    def _pieces(self, content: Content) -> Iterator[tuple[str, str | None]]:
        fields = {TEXT: content.text, CONTEXT: content.context, POLICY: self.policy}
        for place, part in enumerate(self.parts):
            yield (fields[part], part) if place % 2 else (part, None)

    def _cut(self, content: Content, tokenizer: "SealedTokenizer", room: int) -> Prompt:
        """Cut the end of the longer one of text and context until the prompt fits."""
        while True:
            (tokens,) = tokenizer.encode([self.filled(content)])
            if (excess := len(tokens.ids) - room) <= 0:
                return Prompt(tokens.ids, True)
            field = CONTEXT if len(content.context) > len(content.text) else TEXT
            start, end = self._span(content, field)
            inside = [end_ - start for end_ in tokens.ends if start < end_ <= end]
            kept = inside[-excess - 1] if len(inside) > excess else 0
            if end == start:
                raise UserError(
                    f"--max-tokens: the prompt without content has {len(tokens.ids)} tokens, more than the {room} that are left"
                )
            shorter = getattr(content, field)[: min(kept, end - start - 1)]
            content = content._replace(**{field: shorter})

    def _span(self, content: Content, field: str) -> tuple[int, int]:
        position = 0
        for text, name in self._pieces(content):
            if name == field:
                return position, position + len(text)
            position += len(text)
        return 0, 0


def make_questions(
    page: GuardFormat,
    turn: Turn,
    tokenizer: "SealedTokenizer",
    *,
    categories: Sequence[str] = (),
    policies: Mapping[str, str] | None = None,
    chat: "RenderedTemplate | None" = None,
    where: str = "",
) -> list[Question]:
    """Return the prompts of a format.

    Args:
        page: the format.
        turn: what is judged.
        tokenizer: the model's.
        categories: keys of the categories to ask about, of a format that asks about each.
        policies: label to its policy text, of a format that reads it.
        chat: the model's chat template, of a format that is rendered through it.
        where: the model, for messages.

    Raises:
        UserError: if the model lacks a special token, a template is invalid, or answers cannot be told apart.
    """
    layout = page.turn(turn)
    where = f"{where}, format {page.name}"
    if absent := [token for token in page.special_tokens if token not in tokenizer.special]:
        raise UserError(f"{where}: its tokenizer has no special token {', '.join(absent)}; choose the format of this model")
    known = {key: category for key, category in page.categories.items() if key not in layout.without}
    if page.asks == "once":
        asked: list[str | None] = [None]
    elif page.asks == "each":
        asked = [key for key in known if key in categories]
    else:
        asked = list(policies or {})
    questions = []
    for key in asked:
        variables: dict[str, object] = {name: _MARKS[name] for name in (TEXT, CONTEXT)}
        variables["categories"] = [_shown(name, category, turn) for name, category in known.items()]
        if page.asks == "each" and key is not None:
            variables["category"] = _shown(key, known[key], turn)
        if page.asks == "policy":
            variables[POLICY] = _MARKS[POLICY]
        parts = _split(page, layout, variables, chat, tokenizer, where)
        policy = (policies or {})[key] if page.asks == "policy" and key is not None else ""
        tree = _tree(layout, known, parts, policy, tokenizer, where)
        questions.append(Question(key, parts, policy, tree))
    return questions


class _Shown(NamedTuple):
    """A category as templates see it."""

    id: str
    name: str
    definition: str


def _shown(key: str, category: Category, turn: Turn) -> _Shown:
    definition = category.response or category.prompt if turn == "response" else category.prompt
    return _Shown(key, category.name, definition)


def _split(  # noqa: PLR0917
    page: GuardFormat,
    layout: TurnFormat,
    variables: Mapping[str, object],
    chat: "RenderedTemplate | None",
    tokenizer: "SealedTokenizer",
    where: str,
) -> tuple[str, ...]:
    """Render a prompt, and split it at the marks: part, name, part, name, …, part."""
    if layout.template is not None:
        text = _render(layout.template, variables, where)
    else:
        if chat is None:
            raise UserError(f"{where}: the format needs the model's chat template")
        instruction, body = (_render(source or "", variables, where) for source in (layout.instruction, layout.body))
        between = "\n\n" if chat.between is None else chat.between
        text = f"{chat.before}{instruction}{between}{body}{chat.after}"
    parts = _MARKED.split(text)
    names = parts[1::2]
    wanted = [TEXT, *([CONTEXT] if layout is page.response else []), *([POLICY] if page.asks == "policy" else [])]
    for name in wanted:
        if names.count(name) != 1:
            raise UserError(f"{where}: the template must have {{{{ {name} }}}} once, not {names.count(name)} times")
    if CONTEXT in names and CONTEXT not in wanted:
        raise UserError(f"{where}: the template of the turn prompt has no {{{{ context }}}}; remove it")
    return tuple(part if place % 2 else tokenizer.seal(part) for place, part in enumerate(parts))


def _render(source: str, variables: Mapping[str, object], where: str) -> str:
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    try:
        return environment.from_string(source).render(**variables)
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{where}: the template cannot be rendered ({str(error).splitlines()[0]})") from None


def _tree(  # noqa: PLR0917
    layout: TurnFormat,
    categories: Mapping[str, Category],
    parts: tuple[str, ...],
    policy: str,
    tokenizer: "SealedTokenizer",
    where: str,
) -> AnswerTree:
    answers = possible_answers(layout, categories)
    fields = {TEXT: _SAMPLE, CONTEXT: _SAMPLE, POLICY: policy}
    prompt = "".join(fields[part] if place % 2 else part for place, part in enumerate(parts))
    (alone,), together = tokenizer.encode([prompt]), tokenizer.encode([prompt + tokenizer.seal(a.text) for a in answers])
    for answer, tokens in zip(answers, together, strict=True):
        if tokens.ids[: len(alone.ids)] != alone.ids or len(tokens.ids) == len(alone.ids):
            raise UserError(f"{where}: the tokenizer joins the end of the prompt and the answer {answer.text!r} in one token")
    return AnswerTree(answers, [tokens.ids[len(alone.ids) :] for tokens in together], where)
