"""Requests to LLM servers and their responses: the likeliest next tokens after a prompt, with log probabilities.

Two interfaces are known. ``completions`` is OpenAI's ``/v1/completions``, which vLLM, llama.cpp and SGLang serve; their responses
differ, and all shapes are read. ``tgi`` is ``/generate`` of Text Generation Inference, whose ``/v1/completions`` has no log
probabilities. docs/guards.md states which servers were run and which were only read about.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from vigil_data.errors import UserError
from vigil_serving.llm_server.client import MalformedResponse

Api = Literal["completions", "tgi"]
PATHS: Mapping[Api, str] = {"completions": "/v1/completions", "tgi": "/generate"}
MODELS = "/v1/models"

_ID = "token_id:"
"""Prefix of tokens that vLLM names by their ids."""


class Answers(NamedTuple):
    """The two answer tokens, yes first: their ids, and the text of each alone."""

    ids: tuple[int, int]
    texts: tuple[str, str]


class Form(NamedTuple):
    """Form of a request, since servers take different ones.

    Attributes:
        tokens: the prompt is token ids, not text.
        extended: the request has keys of vLLM and llama.cpp beyond OpenAI's, such as the ids of the answers.
        skip_first: the text is sent without the prompt's first token, because the server adds the beginning of text itself.
    """

    tokens: bool
    extended: bool
    skip_first: bool = False


FORMS: Mapping[Api, tuple[Form, ...]] = {
    "completions": (Form(True, True), Form(True, False), Form(False, True), Form(False, False)),
    "tgi": (Form(False, False),),
}
"""Forms to try, the best first."""


@dataclass(frozen=True, slots=True)
class NextTokens:
    """What a server reports of the token after a prompt.

    Attributes:
        answers: log probability of each answer token, yes first; ``None`` for one that is not reported.
        listed: log probabilities of all reported tokens.
        prompt_tokens: length of the prompt as the server read it; ``None`` if it does not say.
    """

    answers: tuple[float | None, float | None]
    listed: tuple[float, ...]
    prompt_tokens: int | None


class LogOdds(NamedTuple):
    """Log odds of yes against no.

    Attributes:
        value: the log odds.
        bounded: one answer was not reported, and the log odds are at least as far from 0 as ``value``, with its sign.
    """

    value: float
    bounded: bool


def request_body(
    api: Api, form: Form, prompt: Sequence[int] | str, answers: Answers, *, model: str | None, top: int, prefill: bool = False
) -> dict[str, Any]:
    """Return the body of a request for the next token.

    Args:
        api: interface of the server.
        form: form of the request.
        prompt: token ids if ``form.tokens``, else text.
        answers: the answer tokens.
        model: name of the model; only with ``completions``.
        top: number of likeliest tokens to report.
        prefill: ask ``tgi`` for the length of the prompt, which costs it the log probabilities of all its tokens.
    """
    prompt = prompt if isinstance(prompt, str) else list(prompt)
    if api == "tgi":
        parameters = {"max_new_tokens": 1, "do_sample": False, "details": True, "top_n_tokens": top}
        return {"inputs": prompt, "parameters": {**parameters, "decoder_input_details": prefill}}
    body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": top}
    if form.extended:
        # vLLM: exactly the two answers, named by ids, and no token added to a text. llama.cpp: its own name of `logprobs`.
        body |= {"logprob_token_ids": list(answers.ids), "return_tokens_as_token_ids": True, "n_probs": top}
        body |= {} if form.tokens else {"add_special_tokens": False}
    return body


def read_response(api: Api, body: Any, answers: Answers) -> NextTokens:
    """Read a response.

    Raises:
        MalformedResponse: if it has no log probabilities of the next token.
    """
    try:
        return _read_tgi(body, answers) if api == "tgi" else _read_completion(body, answers)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise MalformedResponse(f"has no log probabilities of the next token ({type(error).__name__}: {error})") from None


def read_model(body: Any, url: str) -> str:
    """Return the name of the only model in a list of models.

    Raises:
        UserError: if there is none, or more than one.
    """
    try:
        names = [str(entry["id"]) for entry in body["data"]]
    except (KeyError, TypeError):
        names = []
    if len(names) != 1:
        found = f"serves {len(names)} models ({', '.join(names[:8])})" if names else f"does not list its model at {MODELS}"
        raise UserError(f"{url}: {found}; name the model with --model")
    return names[0]


def log_odds(found: NextTokens) -> LogOdds | None:
    """Return the log odds of yes against no; ``None`` if the server reported neither answer.

    A token that is not reported is at most as likely as the least likely of those that are, and as likely as all that is left of
    the probability. Of one missing answer, the smaller of both bounds is taken for its log probability.
    """
    yes, no = found.answers
    if yes is not None and no is not None:
        return LogOdds(yes - no, bounded=False)
    rest = 1 - math.fsum(math.exp(value) for value in found.listed)
    bound = min([*found.listed, math.log(max(rest, 1e-12))], default=0.0)
    if yes is not None:
        return LogOdds(max(yes - bound, 0.0), bounded=True)
    if no is not None:
        return LogOdds(min(bound - no, 0.0), bounded=True)
    return None


def _read_completion(body: Any, answers: Answers) -> NextTokens:
    logprobs = body["choices"][0]["logprobs"]
    if logprobs.get("content"):  # llama.cpp, and chat completions
        tokens = [(entry.get("id"), entry["token"], entry["logprob"]) for entry in logprobs["content"][0]["top_logprobs"]]
    else:
        tokens = [_named(name, value) for name, value in logprobs["top_logprobs"][0].items()]
    return _next_tokens(tokens, answers, (body.get("usage") or {}).get("prompt_tokens"))


def _read_tgi(body: Any, answers: Answers) -> NextTokens:
    details = (body[0] if isinstance(body, list) else body)["details"]
    tokens = [(token["id"], token["text"], token["logprob"]) for token in details["top_tokens"][0]]
    return _next_tokens(tokens, answers, len(details.get("prefill") or ()) or None)


def _named(name: str, logprob: float) -> tuple[int | None, str, float]:
    return (int(name.removeprefix(_ID)) if name.startswith(_ID) else None, name, logprob)


def _next_tokens(tokens: Iterable[tuple[int | None, str, Any]], answers: Answers, prompt_tokens: int | None) -> NextTokens:
    by_id: dict[int, float] = {}
    by_text: dict[str, float] = {}
    listed: list[float] = []
    for number, text, logprob in tokens:
        value = float(logprob)
        if math.isnan(value) or value > 1e-3:
            raise ValueError(f"a log probability of {logprob}")
        listed.append(value)
        if number is None:
            by_text[text] = value
        else:
            by_id[number] = value
    if not listed:
        raise ValueError("an empty list of tokens")
    yes, no = (by_id.get(number, by_text.get(text)) for number, text in zip(*answers, strict=True))
    return NextTokens((yes, no), tuple(listed), prompt_tokens)
