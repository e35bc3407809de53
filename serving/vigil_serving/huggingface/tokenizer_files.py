"""Tokenizer and chat template of a guard, as transformers and LLM servers read them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from vigil_data.decode.text import tokenizer_definition
from vigil_data.filesystem import write_json
from vigil_data.prompts.chat_template import DATE, ChatTemplate
from vigil_data.source_specs import Source
from vigil_data.sources import resolve

CONFIG, TEMPLATE, TOKENIZER = "tokenizer_config.json", "chat_template.jinja", "tokenizer.json"
_NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_COPIED = ("special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt")
"""Files that some programs read in place of tokenizer.json."""


def write_tokenizer_files(folder: Path, source: Source, template: ChatTemplate, max_tokens: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja.

    Args:
        folder: the guard's folder.
        source: the recipe's tokenizer.
        template: the recipe's chat template.
        max_tokens: longest sequence that the language model takes.
    """
    (folder / TOKENIZER).write_text(tokenizer_definition(source), encoding="utf-8")
    home = resolve(source)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **template.tokens, "model_max_length": max_tokens}
    if home.suffix != ".gguf":
        home = home if home.is_dir() else home.parent
        if (home / CONFIG).is_file():
            config = json.loads((home / CONFIG).read_text(encoding="utf-8"))
            config.pop("chat_template", None)
        for name in _COPIED:
            if (home / name).is_file():
                shutil.copyfile(home / name, folder / name)
    write_json(folder / CONFIG, config)
    if template.text is not None:
        (folder / TEMPLATE).write_text(settled(template.text), encoding="utf-8")


def settled(template: str) -> str:
    """Return a chat template that renders the guard's prompt without arguments.

    A template may write today's date, or open a thought that the answer would follow: both are as in training.
    """
    dated = _NOW.sub(lambda call: json.dumps(DATE.strftime(call[2])), template)
    return "{%- set enable_thinking = false -%}" + dated if "enable_thinking" in dated else dated
