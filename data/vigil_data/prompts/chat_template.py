"""Chat templates: where they are found, and their constant parts around an instruction and a user's message.

Templates come from the hub and are untrusted code: Jinja's sandbox runs them, and nothing but messages is passed to them.
"""

import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

from vigil_data.errors import UserError

INSTRUCTION, BODY = "⟦vigil instruction⟧", "⟦vigil body⟧"
DATE = date(2024, 7, 26)
"""Date for templates that write the current one: a prompt must not change from day to day."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template, and the special tokens that it names.

    Attributes:
        text: Jinja source; ``None`` for plain text.
        tokens: names such as ``bos_token`` to the token.
        origin: file, for error messages.
    """

    text: str | None
    tokens: dict[str, str]
    origin: str


@dataclass(frozen=True, slots=True)
class RenderedTemplate:
    """Constant parts of a rendered template.

    Attributes:
        before: up to the instruction.
        between: from the instruction to the user's message; ``None`` if the template has no system message, and the instruction
            is the beginning of the user's message.
        after: from the user's message to the first token of the answer.
    """

    before: str
    between: str | None
    after: str


def read_chat_template(path: Path) -> ChatTemplate:
    """Read a chat template.

    Args:
        path: a model's folder with ``chat_template.jinja`` or ``tokenizer_config.json``, one of these files or one next to a
            ``tokenizer.json``, any other Jinja file, or a ``.gguf`` file.

    Raises:
        UserError: if there is none; the message names the alternatives.
    """
    if path.suffix == ".gguf":
        from vigil_data.decode.gguf_tokenizer import read_gguf_template

        text, tokens = read_gguf_template(path)
        return ChatTemplate(text, tokens, str(path)) if text is not None else _none(path)
    folder = path if path.is_dir() else path.parent
    config_file = path if path.suffix == ".json" and path.name != "tokenizer.json" else folder / "tokenizer_config.json"
    config = _read_json(config_file)
    tokens = {name: token for name, value in config.items() if name.endswith("_token") and (token := _token(value)) is not None}
    jinja = folder / "chat_template.jinja" if path.is_dir() or path.suffix == ".json" else path
    if jinja.is_file():
        try:
            return ChatTemplate(jinja.read_text(encoding="utf-8"), tokens, str(jinja))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{jinja}: cannot be read ({error})") from None
    text = _default(config.get("chat_template"))
    return ChatTemplate(text, tokens, str(config_file)) if text is not None else _none(path)


def render(template: ChatTemplate) -> RenderedTemplate:
    """Render a template once, with marks in place of instruction and message, and split it there.

    Models without a system message, whose template refuses or drops it, have the instruction in the user's message.

    Raises:
        UserError: if the template fails, or changes, drops or repeats the message.
    """
    if template.text is None:
        return RenderedTemplate("", None, " ---\nAnswer:\n")
    system, user = {"role": "system", "content": INSTRUCTION}, {"role": "user", "content": BODY}
    try:
        text = _run(template, [system, user])
    except UserError:
        text = ""
    if text.count(INSTRUCTION) == 1 and text.count(BODY) == 1 and text.index(INSTRUCTION) < text.index(BODY):
        before, rest = text.split(INSTRUCTION)
        between, after = rest.split(BODY)
        return RenderedTemplate(before, between, _without_reasoning(after))
    text = _run(template, [user])
    if text.count(BODY) != 1:
        what = "drops or changes" if BODY not in text else "repeats"
        raise UserError(
            f"{template.origin}: the chat template {what} the user's message; "
            "give another with model.prompt.chat_template, or {kind: none} for plain text"
        )
    before, after = text.split(BODY)
    return RenderedTemplate(before, None, _without_reasoning(after))


def _without_reasoning(after: str) -> str:
    """Close a block of reasoning that a template opens, so that the answer is the next token."""
    return f"{after}\n</think>\n\n" if "<think>" in after and "</think>" not in after else after


def _run(template: ChatTemplate, messages: list[dict[str, str]]) -> str:
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": DATE.strftime}
    try:
        return environment.from_string(template.text or "").render(
            messages=messages,
            add_generation_prompt=True,
            enable_thinking=False,
            tools=None,
            documents=None,
            **template.tokens,
        )
    except (
        TemplateError,
        SecurityError,
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        IndexError,
        ArithmeticError,
        RecursionError,
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{template.origin}: the chat template cannot be rendered ({reason})") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None
    return read if isinstance(read, dict) else {}


def _token(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _default(template: Any) -> str | None:
    """Return the template of a tokenizer_config.json, which may be a list of named ones."""
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _none(path: Path) -> NoReturn:
    raise UserError(
        f"{path}: has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); "
        "name one with model.prompt.chat_template, or write {kind: none} there for plain text to a base model"
    )
