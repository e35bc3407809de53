"""The HTTP client against a server that fails: what is sent again, what is refused, and what ends it."""

import threading
import time

import pytest
from llm_server import Fault, LlmServer, hashed_logits
from tokenizers import Tokenizer

from vigil_data.errors import Failure, UserError
from vigil_serving.llm_server.client import ConnectionSettings, HttpClient, Refused

BODY = {"model": "tiny", "prompt": [5, 6], "max_tokens": 1, "temperature": 0, "logprobs": 5}


def settings(url: str, **changes) -> ConnectionSettings:
    return ConnectionSettings(url, **{"timeout": 5.0, "first_wait": 0.001, "retries": 3, **changes})


def ask(client: HttpClient) -> dict:
    return client.request("POST", "/v1/completions", lambda body: body, BODY)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(500),
        Fault(503),
        Fault(502),
        Fault(429),
        Fault(408),
        Fault(truncated=True),
        Fault(cut=True),
        Fault(429, {"Retry-After": "0"}),
        Fault(503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    ],
)
def test_a_failed_attempt_is_made_again(tokenizer: Tokenizer, fault: Fault) -> None:
    server = LlmServer(hashed_logits, tokenizer, fault=lambda number: fault if number < 2 else None)
    with server.running():
        client = HttpClient(settings(server.url))
        assert ask(client)["choices"]
        assert client.retried == 2
        assert len(server.prompts) == 3
        client.close()


def test_the_last_failure_is_the_reason(tokenizer: Tokenizer) -> None:
    server = LlmServer(hashed_logits, tokenizer, fault=lambda _: Fault(500))
    with server.running():
        client = HttpClient(settings(server.url))
        with pytest.raises(Failure, match=r"status 500 \(made to fail with 500\); 4 attempts failed"):
            ask(client)
        client.close()


def test_a_slow_response_times_out_and_is_asked_again(tokenizer: Tokenizer) -> None:
    server = LlmServer(hashed_logits, tokenizer, fault=lambda number: Fault(seconds=1.0) if number == 0 else None)
    with server.running():
        client = HttpClient(settings(server.url, timeout=0.2))
        assert ask(client)["choices"]
        assert client.retried == 1
        client.close()


def test_retry_after_is_waited_for(tokenizer: Tokenizer) -> None:
    server = LlmServer(hashed_logits, tokenizer, fault=lambda number: Fault(429, {"Retry-After": "0.3"}) if number == 0 else None)
    with server.running():
        client = HttpClient(settings(server.url))
        start = time.monotonic()
        ask(client)
        assert time.monotonic() - start >= 0.3
        client.close()


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_not_sent_again(tokenizer: Tokenizer, status: int) -> None:
    server = LlmServer(hashed_logits, tokenizer, fault=lambda _: Fault(status))
    with server.running():
        client = HttpClient(settings(server.url))
        with pytest.raises(Refused, match=rf"status {status} \(made to fail with {status}\)"):
            ask(client)
        assert len(server.prompts) == 1
        client.close()


def test_a_missing_key_is_the_users_mistake(tokenizer: Tokenizer) -> None:
    server = LlmServer(hashed_logits, tokenizer, api_key="secret-1")
    with server.running():
        client = HttpClient(settings(server.url, api_key="secret-2"))
        with pytest.raises(UserError, match=r"status 401 \(Unauthorized\); set the variable that --api-key-env names") as error:
            ask(client)
        assert "secret" not in str(error.value)
        client.close()
        allowed = HttpClient(settings(server.url, api_key="secret-1"))
        assert ask(allowed)["choices"]
        allowed.close()


def test_an_unknown_path_is_the_users_mistake(tokenizer: Tokenizer) -> None:
    server = LlmServer(hashed_logits, tokenizer, kind="tgi")
    with server.running():
        client = HttpClient(settings(server.url))
        with pytest.raises(UserError, match=r"status 404.*check --server, --api and --model"):
            ask(client)
        client.close()


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://user:key@host", "http://h?a=1"]
)
def test_a_malformed_address_is_the_users_mistake(url: str) -> None:
    with pytest.raises(UserError, match="must be an address such as"):
        HttpClient(ConnectionSettings(url))


def test_nobody_at_the_address_is_a_failure() -> None:
    client = HttpClient(settings("http://127.0.0.1:9", retries=1))
    with pytest.raises(Failure, match=r"127.0.0.1:9: .*Connection refused; 2 attempts failed"):
        ask(client)


def test_a_path_in_the_address_stands_before_the_interfaces_own(tokenizer: Tokenizer) -> None:
    server = LlmServer(hashed_logits, tokenizer)
    with server.running():
        client = HttpClient(settings(f"{server.url}/v1/"))
        assert ask(client)["choices"]
        assert server.requests[0][0] == "/v1/completions"
        client.close()
        behind = HttpClient(settings(f"{server.url}/llm"))
        with pytest.raises(UserError, match="404"):
            ask(behind)
        assert server.requests[-1][0] == "/llm/v1/completions"
        behind.close()


def test_close_ends_waiting_requests(tokenizer: Tokenizer) -> None:
    server = LlmServer(hashed_logits, tokenizer, fault=lambda _: Fault(seconds=3.0))
    with server.running():
        client = HttpClient(settings(server.url, timeout=60.0))
        errors: list[BaseException] = []

        def run() -> None:
            try:
                ask(client)
            except Failure as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while not server.prompts:
            time.sleep(0.01)
        start = time.monotonic()
        client.close()
        thread.join(2)
        assert not thread.is_alive()
        assert time.monotonic() - start < 1
        assert errors


def test_a_thread_keeps_its_connection(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    from http.client import HTTPConnection

    connects = []
    connect = HTTPConnection.connect
    monkeypatch.setattr(HTTPConnection, "connect", lambda self: (connects.append(self), connect(self))[1])
    server = LlmServer(hashed_logits, tokenizer)
    with server.running():
        client = HttpClient(settings(server.url))
        for _ in range(5):
            ask(client)
        assert len(connects) == 1
        client.close()
