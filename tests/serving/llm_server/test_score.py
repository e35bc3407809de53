"""A dataset scored through a server: the table of the trained guard, whatever the server does, or one clear error."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from llm_server import Fault, LlmServer, NextLogits, causal_lm, hashed_logits
from tokenizers import Tokenizer
from typer.testing import CliRunner

from vigil.cli import build
from vigil_data.dataset.dataset import write
from vigil_data.decode import Decoder
from vigil_data.errors import Failure, UserError
from vigil_data.items import Item
from vigil_data.loading.batch import collate
from vigil_evaluation.predictions import read_predictions
from vigil_serving.llm_server import scorer
from vigil_serving.llm_server.client import ConnectionSettings
from vigil_serving.llm_server.folder import load_guard_folder
from vigil_serving.llm_server.score import ServerSummary, score_with_server

LABELS = ("abuse", "insult", "spam")


class Guarded(NamedTuple):
    """A guard's folder, a dataset, the server's language model, and the trained guard's probabilities ``[N, L]``."""

    folder: Path
    dataset: Path
    lm: NextLogits
    tokenizer: Tokenizer
    expected_NL: np.ndarray

    def server(self, kind: str = "vllm", **options: Any) -> LlmServer:
        return LlmServer(options.pop("lm", self.lm), self.tokenizer, kind, **options)

    def score(self, server: LlmServer, to: Path, **options: Any) -> ServerSummary:
        connection = ConnectionSettings(server.url, None, options.pop("timeout", 10.0), options.pop("retries", 4), 0.001)
        api = "tgi" if server.kind == "tgi" else "completions"
        return score_with_server(self.folder, self.dataset, to, connection, api=api, **{"chunk": 6, **options})


@pytest.fixture(scope="module")
def guarded(tiny_guard: Callable, tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    home = tmp_path_factory.mktemp("guarded")
    guard = tiny_guard("llama")
    guard.export(home / "guard")
    words = ("call", "me", "now!", "why", "not?", "a red cat.", "the sun", "a dog", "win $100", "🙂")
    random = np.random.default_rng(0)
    items = [Item(f"{n:02}", (" ".join(random.choice(words, random.integers(1, 9))),)) for n in range(18)]
    items[3] = Item("03", ("a title", "and a body."), roles={"text": ("title", "body")})
    items[7] = Item("07")
    write(home / "dataset", items)
    with torch.no_grad():
        logits_NL = guard.model(collate(Decoder(guard.inputs, ()).decode_all(items))).logits_NL
    lm = functools.cache(causal_lm(home / "guard"))  # the tests send the same prompts many times
    return Guarded(
        home / "guard",
        home / "dataset",
        lambda ids: lm(tuple(ids)),
        Tokenizer.from_file(str(home / "guard" / "tokenizer.json")),
        torch.sigmoid(logits_NL).numpy(),
    )


@pytest.fixture
def to(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "scores.parquet"
    assert not list(tmp_path.glob(".*.shards")) or not (tmp_path / "scores.parquet").exists()


def probabilities(to: Path) -> np.ndarray:
    table = pq.read_table(to)
    return np.array([table[f"probability.{label}"].to_numpy(zero_copy_only=False) for label in LABELS]).T


@pytest.mark.parametrize(("kind", "top"), [("vllm", 20), ("llama.cpp", 400), ("text only", 400)])
def test_the_probabilities_through_a_server_are_those_of_the_trained_guard(
    guarded: Guarded, to: Path, kind: str, top: int
) -> None:
    with (server := guarded.server(kind)).running():
        summary = guarded.score(server, to, top=top)
    assert (summary.items, summary.errors, summary.bounded, summary.retried) == (18, 0, 0, 0)
    assert summary.check is not None
    assert (summary.check.flips, summary.check.tokens) == (0, kind != "text only")
    assert summary.check.max_difference < 1e-4
    assert np.abs(probabilities(to) - guarded.expected_NL).max() < 1e-4
    thresholds = np.array([0.4, 0.5, 0.6])
    table = read_predictions(to)
    for column, label in enumerate(LABELS):
        assert table[f"decision.{label}"].to_pylist() == (guarded.expected_NL[:, column] >= thresholds[column]).tolist()
    assert table["id"].to_pylist() == [f"{n:02}" for n in range(18)]


def test_a_server_that_fails_in_every_way_changes_nothing(guarded: Guarded, to: Path, tmp_path: Path) -> None:
    with (server := guarded.server()).running():
        guarded.score(server, tmp_path / "calm.parquet")
    faults = {3: Fault(500), 9: Fault(truncated=True), 20: Fault(cut=True), 31: Fault(429, {"Retry-After": "0.05"})}
    faults |= {40: Fault(body={"choices": []}), 44: Fault(body={"choices": [{"logprobs": None}]}), 50: Fault(seconds=1.5)}
    with (server := guarded.server(fault=faults.get)).running():
        summary = guarded.score(server, to, timeout=1.0)
    assert summary.retried == len(faults)
    assert pq.read_table(to).equals(pq.read_table(tmp_path / "calm.parquet"))


def test_a_job_resumes_after_the_server_went_away(guarded: Guarded, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "BATCH_ITEMS", 6)
    with (server := guarded.server(fault=lambda number: Fault(503) if number > 50 else None)).running():
        with pytest.raises(Failure, match=r"status 503 .*; 2 attempts failed"):
            guarded.score(server, to, retries=1, concurrency=2)
        assert not to.exists()
    with (server := guarded.server()).running():  # at another address
        summary = guarded.score(server, to)
    assert summary.resumed in (6, 12)
    assert len(server.prompts) < 18 * 3, "what was scored is not asked again"
    assert np.abs(probabilities(to) - guarded.expected_NL).max() < 1e-4


def test_answers_that_a_server_does_not_report_are_bounded_and_counted(guarded: Guarded, to: Path) -> None:
    with (server := guarded.server("openai", limit=100)).running():
        summary = guarded.score(server, to, top=100)
    table = pq.read_table(to)
    assert summary.bounded == sum(bool(labels) for labels in table["bounded"].to_pylist()) > 0
    found = probabilities(to)
    for row, (labels, error) in enumerate(zip(table["bounded"].to_pylist(), table["error"].to_pylist(), strict=True)):
        if error is not None:
            assert "neither answer is among the 100 likeliest tokens" in error
            continue
        for column, label in enumerate(LABELS):
            true = guarded.expected_NL[row, column]
            if label == "abuse" or label in labels:  # abuse has at least the log odds of insult
                assert min(abs(found[row, column] - 0.5), 0.5) <= abs(true - 0.5) + 1e-4
                assert (found[row, column] - 0.5) * (true - 0.5) >= 0
            else:
                assert found[row, column] == pytest.approx(true, abs=1e-4)


def test_prompts_that_begin_alike_follow_each_other_and_requests_are_bounded(guarded: Guarded, to: Path, tmp_path: Path) -> None:
    with (server := guarded.server()).running():
        guarded.score(server, to, concurrency=1)
    prompts = [tuple(prompt) for prompt in server.prompts][-18 * 3 :]
    assert prompts == sorted(prompts)
    assert server.most_active == 1
    with (server := guarded.server(fault=lambda _: Fault(seconds=0.01))).running():
        guarded.score(server, tmp_path / "other.parquet", concurrency=4)
    assert 2 <= server.most_active <= 4


def test_a_server_of_another_model_is_refused(guarded: Guarded, to: Path) -> None:
    with (server := guarded.server(lm=hashed_logits)).running():
        with pytest.raises(
            UserError, match=r"its log odds differ from the trained guard's by up to \d.* serve this folder, or raise"
        ):
            guarded.score(server, to)
        guarded.score(server, to, tolerance=1e9)


def test_an_item_that_the_server_refuses_has_an_error(guarded: Guarded, to: Path) -> None:
    refused = Fault(400)
    with (server := guarded.server(fault=lambda number: refused if number in (20, 21, 40) else None)).running():
        summary = guarded.score(server, to)
    errors = [error for error in pq.read_table(to)["error"].to_pylist() if error]
    assert summary.errors == len(errors) >= 1
    assert all("status 400 (made to fail with 400)" in error for error in errors)
    kept = np.array([error is None for error in pq.read_table(to)["error"].to_pylist()])
    assert np.abs(probabilities(to)[kept] - guarded.expected_NL[kept]).max() < 1e-4


def test_a_server_with_too_short_a_context_is_refused_at_the_start(guarded: Guarded, to: Path) -> None:
    longest = max(len(prompt.ids) for prompt in load_guard_folder(guarded.folder)[1].golden)
    refused = pytest.raises(UserError, match=r"refuses a prompt of the guard: status 400 .*maximum context length is")
    with (server := guarded.server(context=longest)).running(), refused:
        guarded.score(server, to)


def test_other_policy_texts_change_the_prompts_and_are_marked(guarded: Guarded, to: Path, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(
        "name: new\nheads: {words: {labels: {spam: {definition: 'The item names a cat.'}}}}\n", encoding="utf-8"
    )
    with (server := guarded.server()).running():
        summary = guarded.score(server, to, policy_text=tmp_path / "new.yaml")
    assert summary.not_evaluated == summary.uncalibrated == ("spam",)
    found = probabilities(to)
    assert np.abs(found[:, :2] - guarded.expected_NL[:, :2]).max() < 1e-4
    assert np.abs(found[:, 2] - guarded.expected_NL[:, 2]).max() > 1e-3


def test_score_command_prints_what_was_found(guarded: Guarded, to: Path) -> None:
    with (server := guarded.server(api_key="secret")).running():
        arguments = ["guard", "score", str(guarded.folder), str(guarded.dataset), "--server", server.url, "--to", str(to)]
        missing = CliRunner().invoke(build(), [*arguments, "--api-key-env", "NO_SUCH_KEY"])
        assert isinstance(missing.exception, UserError)
        found = CliRunner(env={"LLM_KEY": "secret"}).invoke(build(), [*arguments, "--api-key-env", "LLM_KEY"])
    assert found.exit_code == 0, found.output
    assert "server: tiny, prompts as token ids" in found.output
    assert "golden prompts, 0 answers differ" in found.output
    assert "18 items in" in found.output


def test_a_folder_that_is_no_guards_is_refused(tmp_path: Path, guarded: Guarded) -> None:
    with pytest.raises(UserError, match=r"not a guard's Hugging Face folder: it has no llm.json"):
        score_with_server(tmp_path, guarded.dataset, tmp_path / "x.parquet", ConnectionSettings("http://127.0.0.1:9"))
