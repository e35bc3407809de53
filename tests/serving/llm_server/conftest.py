"""A tiny tokenizer and its answers; with a pure function as language model these tests need no torch."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from vigil_serving.llm_server.protocols import Answers


@pytest.fixture(scope="session")
def tokenizer(tiny_lm_tokenizer: Callable[[str], Path]) -> Tokenizer:
    """Llama's: it puts the beginning of text before a passage."""
    return Tokenizer.from_file(str(tiny_lm_tokenizer("llama") / "tokenizer.json"))


@pytest.fixture(scope="session")
def answers(tokenizer: Tokenizer) -> Answers:
    yes, no = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("Yes", "No"))
    assert len(yes) == len(no) == 1
    return Answers((yes[0], no[0]), ("Yes", "No"))
