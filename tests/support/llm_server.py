"""A local server of the interfaces of LLM servers, with a tiny language model behind it, and with faults.

The shapes of requests and responses follow what the servers document: vLLM (``vllm/entrypoints/openai/completion/protocol.py``
and ``serving.py``), llama.cpp (``tools/server/README.md`` and ``server-task.cpp``), OpenAI's reference of ``/v1/completions``,
and Text Generation Inference (``router/src/lib.rs``).
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Kind = Literal["vllm", "old vllm", "llama.cpp", "openai", "text only", "tgi"]
NextLogits = Callable[[Sequence[int]], NDArray[np.floating]]
"""A prompt's token ids to the logits ``[V]`` of the next token."""

OPENAI_KEYS = {"model", "prompt", "max_tokens", "temperature", "logprobs"}


@dataclass(frozen=True)
class Fault:
    """What happens to a request in place of an ordinary response.

    Attributes:
        status: status to send instead; 200 sends the ordinary response.
        headers: further headers.
        seconds: wait first.
        cut: send half of the body under the length of the whole, and end the connection.
        truncated: send half of the body as if it were the whole.
        body: body to send instead.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0
    cut: bool = False
    truncated: bool = False
    body: Any = None


class LlmServer:
    """A server on a free port.

    Args:
        next_logits: the language model.
        tokenizer: its tokenizer.
        kind: whose interface it has.
        context: longest prompt in tokens, and the answer.
        limit: most likeliest tokens that it lists (default: that of its kind).
        fault: number of a request for completions, from 0, to what happens to it; ``None`` for nothing.
        api_key: key that clients must send.
        models: names that it lists.

    Attributes:
        requests: path and body of each request.
        most_active: largest number of requests that were open at the same time.
    """

    def __init__(
        self,
        next_logits: NextLogits,
        tokenizer: Tokenizer,
        kind: Kind = "vllm",
        *,
        context: int = 512,
        limit: int | None = None,
        fault: Callable[[int], Fault | None] = lambda _: None,
        api_key: str | None = None,
        models: Sequence[str] = ("tiny",),
    ) -> None:
        self.next_logits, self.tokenizer, self.kind, self.context = next_logits, tokenizer, kind, context
        self.limit = limit if limit is not None else {"vllm": 20, "old vllm": 20, "openai": 5, "tgi": 5}.get(kind, 1000)
        self.fault, self.api_key, self.models = fault, api_key, models
        self.requests: list[tuple[str, Any]] = []
        self.most_active = self._active = 0
        self._count = 0
        self._lock = threading.Lock()
        self._model_lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                outer.respond(self, None)

            def do_POST(self) -> None:
                outer.respond(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # of five, a burst of connections would be reset

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator["LlmServer"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    @property
    def prompts(self) -> list[Any]:
        """The prompts that were sent for completion, in the order of their arrival."""
        return [body["inputs" if self.kind == "tgi" else "prompt"] for path, body in self.requests if body is not None]

    def respond(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        with self._lock:
            self.requests.append((handler.path, body))
            self._active += 1
            self.most_active = max(self.most_active, self._active)
            number = self._count
            self._count += body is not None
        try:
            fault = (self.fault(number) if body is not None else None) or Fault()
            time.sleep(fault.seconds)
            if self.api_key is not None and handler.headers["Authorization"] != f"Bearer {self.api_key}":
                status, answer = 401, {"error": {"message": "Unauthorized"}}
            elif fault.status != 200:
                status, answer = fault.status, {"error": {"message": f"made to fail with {fault.status}"}}
            else:
                status, answer = self._answer(handler.path, body) if fault.body is None else (200, fault.body)
            content = json.dumps(answer).encode()
            sent = content[: len(content) // 2] if fault.cut or fault.truncated else content
            handler.send_response(status)
            for name, value in {"Content-Type": "application/json", **fault.headers}.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(content) if fault.cut else len(sent)))
            handler.end_headers()
            handler.wfile.write(sent)
            handler.close_connection = fault.cut
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True
        finally:
            with self._lock:
                self._active -= 1

    def _answer(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/models" and body is None:
            return 200, {"object": "list", "data": [{"id": name} for name in self.models]}
        if path != ("/generate" if self.kind == "tgi" else "/v1/completions") or body is None:
            return 404, {"detail": "Not Found"}
        return self._generate(body) if self.kind == "tgi" else self._complete(body)

    def _complete(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        if body["model"] not in self.models:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        assert body["max_tokens"] == 1
        assert body["temperature"] == 0
        prompt, top = body["prompt"], body["logprobs"]
        if top > self.limit:
            message = f"Requested sample logprobs of {top}, which is greater than max allowed: {self.limit}"
            return 400, {"error": {"message": message}}
        if self.kind == "openai" and (unknown := set(body) - OPENAI_KEYS):
            return 400, {"error": {"message": f"Unrecognized request argument supplied: {min(unknown)}"}}
        if self.kind == "text only" and not isinstance(prompt, str):
            return 422, {"error": {"message": "prompt: value is not a valid str"}}
        if isinstance(prompt, str):
            add = True if self.kind != "vllm" else body.get("add_special_tokens", True)
            prompt = self.tokenizer.encode(prompt, add_special_tokens=add).ids
        if len(prompt) >= self.context:
            return 400, {"error": {"message": f"This model's maximum context length is {self.context} tokens."}}
        logprobs = self._logprobs(prompt)
        best = np.argsort(-logprobs, kind="stable")[:top].tolist()
        if self.kind == "vllm" and body.get("logprob_token_ids"):
            best = list(dict.fromkeys([*best[:1], *body["logprob_token_ids"]]))
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 1}
        text = self.tokenizer.decode([best[0]], skip_special_tokens=False)
        if self.kind == "llama.cpp":
            listed = [{"id": n, "token": self._text(n), "bytes": [], "logprob": float(logprobs[n])} for n in best]
            found: Any = {"content": [{**listed[0], "top_logprobs": listed}]}
        else:
            named = body.get("return_tokens_as_token_ids") and self.kind in ("vllm", "old vllm")
            names = {n: f"token_id:{n}" if named else self._text(n) for n in best}
            found = {"tokens": [names[best[0]]], "top_logprobs": [{names[n]: max(float(logprobs[n]), -9999.0) for n in best}]}
        return 200, {"object": "text_completion", "choices": [{"index": 0, "text": text, "logprobs": found}], "usage": usage}

    def _generate(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        parameters = body["parameters"]
        if parameters["top_n_tokens"] > self.limit:
            return 422, {"error": f"Input validation error: `top_n_tokens` must be >= 0 and <= {self.limit}"}
        ids = self.tokenizer.encode(body["inputs"]).ids
        logprobs = self._logprobs(ids)
        best = np.argsort(-logprobs, kind="stable")[: parameters["top_n_tokens"]].tolist()
        tokens = [{"id": n, "text": self._text(n), "logprob": float(logprobs[n]), "special": False} for n in best]
        prefill = [{"id": n, "text": self._text(n), "logprob": None} for n in ids] if parameters["decoder_input_details"] else []
        details = {"finish_reason": "length", "prefill": prefill, "tokens": tokens[:1], "top_tokens": [tokens]}
        return 200, {"generated_text": tokens[0]["text"], "details": details}

    def _text(self, number: int) -> str:
        text: str = self.tokenizer.decode([number], skip_special_tokens=False)
        return text

    def _logprobs(self, ids: Sequence[int]) -> NDArray[np.float64]:
        with self._model_lock:
            logits = np.asarray(self.next_logits(ids), np.float64)
        return logits - np.logaddexp.reduce(logits)


def hashed_logits(ids: Sequence[int]) -> NDArray[np.floating]:
    """Logits that depend on every token and its place; the answers are among the likeliest after most prompts."""
    seed = int.from_bytes(hashlib.sha256(np.array(ids, np.int64).tobytes()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(0, 2, 400)


def causal_lm(folder: Path) -> NextLogits:
    """The language model of a Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def next_logits(ids: Sequence[int]) -> NDArray[np.floating]:
        with torch.inference_mode():
            logits: NDArray[np.floating] = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1].numpy()
        return logits

    return next_logits
