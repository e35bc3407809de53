"""An LLM server that serves a guard's language model: prompts in, log odds of the two answers out."""

from collections.abc import Sequence
from functools import partial

from tokenizers import Tokenizer

from vigil_data.errors import UserError
from vigil_serving.llm_server.client import HttpClient, Refused
from vigil_serving.llm_server.protocols import (
    FORMS,
    MODELS,
    PATHS,
    Answers,
    Api,
    Form,
    LogOdds,
    NextTokens,
    log_odds,
    read_model,
    read_response,
    request_body,
)


class GuardServer:
    """A server of a guard's language model; several threads may ask it at once.

    Args:
        client: connections to the server.
        api: its interface.
        answers: the guard's answer tokens.
        tokenizer: the guard's tokenizer, which reads special tokens in a text as such.
        model: name of the model (default: the only one that the server lists; TGI serves one and takes no name).
        top: number of likeliest tokens to ask for, where the server cannot be asked for the answers themselves.

    Attributes:
        model: name of the model.
        form: form of the requests; ``None`` before :meth:`connect`.
    """

    def __init__(
        self, client: HttpClient, api: Api, answers: Answers, tokenizer: Tokenizer, *, model: str | None = None, top: int = 20
    ) -> None:
        self.client, self.api, self.answers, self.model, self.top = client, api, answers, model, top
        self.form: Form | None = None
        self._tokenizer = tokenizer

    def connect(self, prompt: Sequence[int]) -> None:
        """Find the form of requests that the server takes, with one prompt.

        Args:
            prompt: token ids of the prompt.

        Raises:
            UserError: if the server takes no form, or does not read these tokens.
            Failure: if it does not respond.
        """
        if self.model is None and self.api == "completions":
            try:
                self.model = self.client.request("GET", MODELS, partial(read_model, url=self.client.settings.url))
            except Refused as refused:
                raise UserError(f"{self.client.settings.url}{MODELS}: {refused}; name the model with --model") from None
        refusals: list[str] = []
        for form in FORMS[self.api]:
            try:
                self.form = self._checked(form, prompt)
                break
            except Refused as refused:
                refusals.append(str(refused))
        else:
            raise UserError(
                f"{self.client.settings.url}{PATHS[self.api]}: takes neither token ids nor text as a prompt: {refusals[0]}; "
                f"--top-logprobs {self.top} may be more than it allows"
            )

    def log_odds(self, prompt: Sequence[int]) -> LogOdds | None:
        """Return the log odds of yes against no after a prompt; ``None`` if the server reports neither answer.

        Raises:
            Refused: if the server does not take the prompt, or it cannot be sent as text.
            Failure: if no attempt succeeded.
        """
        assert self.form is not None, "connect first"
        return log_odds(self._ask(self.form, prompt))

    def _checked(self, form: Form, prompt: Sequence[int]) -> Form:
        """Return the form in which the server reads exactly these tokens, as far as it states their number."""
        read = self._ask(form, prompt, prefill=True).prompt_tokens
        if read == len(prompt) + 1 and not form.tokens:
            form = form._replace(skip_first=True)
            read = self._ask(form, prompt, prefill=True).prompt_tokens
        if read not in (None, len(prompt)):
            raise UserError(
                f"{self.client.settings.url}: reads {read} tokens in a prompt of {len(prompt)}: it serves another model, "
                "or adds tokens of its own; serve the folder that the guard was exported to"
            )
        return form

    def _ask(self, form: Form, prompt: Sequence[int], *, prefill: bool = False) -> NextTokens:
        sent = prompt if form.tokens else self._text(prompt, skip_first=form.skip_first)
        body = request_body(self.api, form, sent, self.answers, model=self.model, top=self.top, prefill=prefill)
        return self.client.request("POST", PATHS[self.api], self._read, body)

    def _read(self, body: object) -> NextTokens:
        return read_response(self.api, body, self.answers)

    def _text(self, prompt: Sequence[int], *, skip_first: bool) -> str:
        """Return the text that the tokenizer splits into exactly this prompt.

        Raises:
            Refused: if there is none, such as for a special token that is typed in an item and was read as plain text.
        """
        wanted = list(prompt)[skip_first:]
        text: str = self._tokenizer.decode(wanted, skip_special_tokens=False)
        if self._tokenizer.encode(text, add_special_tokens=False).ids != wanted:
            raise Refused("the prompt cannot be sent as text, which gives other tokens, and the server takes no token ids")
        return text
