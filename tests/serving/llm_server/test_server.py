"""Log odds through servers of every kind are those of the language model, or the server is refused in one line."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from llm_server import Kind, LlmServer, hashed_logits
from tokenizers import Tokenizer

from vigil_data.errors import UserError
from vigil_serving.llm_server.client import ConnectionSettings, HttpClient, Refused
from vigil_serving.llm_server.protocols import Answers, Form
from vigil_serving.llm_server.server import GuardServer

TEXT = "<s><|start|>user\nTitle: a red cat<|end|>\n"


def prompt_of(tokenizer: Tokenizer, text: str = TEXT) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.fixture
def guard_server(tokenizer: Tokenizer, answers: Answers) -> Iterator[Callable[..., GuardServer]]:
    """A function from a server to a client of it, whose connections end with the test."""
    clients: list[HttpClient] = []

    def make(server: LlmServer, **options) -> GuardServer:
        clients.append(HttpClient(ConnectionSettings(server.url, timeout=5, retries=1, first_wait=0.001)))
        return GuardServer(clients[-1], "tgi" if server.kind == "tgi" else "completions", answers, tokenizer, **options)

    yield make
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("kind", "top", "form"),
    [
        ("vllm", 20, Form(True, True)),
        ("old vllm", 20, Form(True, True)),
        ("llama.cpp", 400, Form(True, True)),
        ("openai", 5, Form(True, False)),
        ("text only", 400, Form(False, True, skip_first=True)),
        ("tgi", 5, Form(False, False, skip_first=True)),
    ],
)
def test_log_odds_through_a_server_are_those_of_the_model(
    kind: Kind, top: int, form: Form, tokenizer: Tokenizer, answers: Answers, guard_server
) -> None:
    server = LlmServer(hashed_logits, tokenizer, kind)
    prompts = [
        prompt_of(tokenizer, f"<s><|start|>user\n{words}<|end|>\n") for words in ("sun", "rain and", "a tree", "blue dog", "x")
    ]
    with server.running():
        asked = guard_server(server, top=top)
        asked.connect(prompts[0])
        assert asked.form == form
        assert asked.model == (None if kind == "tgi" else "tiny")
        kinds = set()
        for prompt in prompts:
            logits = hashed_logits(prompt)
            true = logits[answers.ids[0]] - logits[answers.ids[1]]
            listed = set(np.argsort(-logits)[:top].tolist())
            found = asked.log_odds(prompt)
            missing = [number for number in answers.ids if number not in listed]
            if kind == "vllm" or not missing:
                assert found is not None
                assert not found.bounded
                assert found.value == pytest.approx(true, abs=1e-9)
            elif len(missing) == 1:
                assert found is not None
                assert found.bounded
                assert 0 <= found.value / true <= 1
            else:
                assert found is None
            kinds.add(len(missing))
    assert kinds & {1, 2} or top == 400, "some answers must be missing, or the test shows nothing"


def test_connect_names_the_only_model_or_takes_the_given_one(tokenizer: Tokenizer, guard_server) -> None:
    server = LlmServer(hashed_logits, tokenizer, models=("guard", "other"))
    with server.running():
        with pytest.raises(UserError, match=r"serves 2 models \(guard, other\); name the model with --model"):
            guard_server(server).connect(prompt_of(tokenizer))
        guard_server(server, model="guard").connect(prompt_of(tokenizer))
        with pytest.raises(UserError, match=r"The model `absent` does not exist.*check --server, --api and --model"):
            guard_server(server, model="absent").connect(prompt_of(tokenizer))


def test_connect_refuses_a_server_that_lists_fewer_tokens(tokenizer: Tokenizer, guard_server) -> None:
    server = LlmServer(hashed_logits, tokenizer, "openai")
    with server.running(), pytest.raises(UserError, match=r"greater than max allowed: 5.*--top-logprobs 20 may be more"):
        guard_server(server, top=20).connect(prompt_of(tokenizer))


def test_connect_refuses_a_server_that_reads_other_tokens(tokenizer: Tokenizer, guard_server) -> None:
    prompt = prompt_of(tokenizer)
    server = LlmServer(hashed_logits, tokenizer, "text only")
    other = Tokenizer.from_str(tokenizer.to_str())
    other.add_tokens(["Title: a"])
    server.tokenizer = other
    with (
        server.running(),
        pytest.raises(UserError, match=rf"reads \d+ tokens in a prompt of {len(prompt)}: it serves another model"),
    ):
        guard_server(server, top=100).connect(prompt)


def test_a_prompt_that_text_cannot_give_is_refused(tokenizer: Tokenizer, guard_server) -> None:
    typed = tokenizer.from_str(tokenizer.to_str())
    typed.encode_special_tokens = True
    content = typed.encode("<|end|> Yes", add_special_tokens=False).ids
    prompt = (*prompt_of(tokenizer), *content)
    tokens, text = LlmServer(hashed_logits, tokenizer), LlmServer(hashed_logits, tokenizer, "text only")
    with tokens.running(), text.running():
        takes_ids, takes_text = (guard_server(server, top=20) for server in (tokens, text))
        for asked in (takes_ids, takes_text):
            asked.connect(prompt_of(tokenizer))
        assert takes_ids.log_odds(prompt) is not None
        with pytest.raises(Refused, match="cannot be sent as text"):
            takes_text.log_odds(prompt)


def test_a_prompt_longer_than_the_servers_context_is_refused(tokenizer: Tokenizer, guard_server) -> None:
    server = LlmServer(hashed_logits, tokenizer, context=64)
    with server.running():
        asked = guard_server(server)
        asked.connect(prompt_of(tokenizer))
        with pytest.raises(Refused, match="maximum context length is 64 tokens"):
            asked.log_odds((5,) * 80)
