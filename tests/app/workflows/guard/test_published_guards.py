"""`vigil guard run`: a table of a published guard's scores that evaluation, comparison and suites read; resumption; bad input."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from click.testing import Result
from foreign_lm import write_guard
from PIL import Image
from typer.testing import CliRunner

from vigil.cli import guard as commands
from vigil.workflows.evaluate import evaluate_table
from vigil.workflows.functional_tests import run_suite
from vigil.workflows.guard.published_guards import GuardOptions, GuardSummary, model_path, score_with_guard
from vigil.workflows.release_gate import compare_sources
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.guard_formats.page import load_format
from vigil_data.guard_formats.prompts import NO_CONTEXT, NO_TEXT, Content
from vigil_data.items import Item
from vigil_evaluation.predictions import read_predictions
from vigil_evaluation.specs import EvaluationSpec
from vigil_modeling.guards.answer_logits import AnswerModel
from vigil_modeling.guards.published_guard import PublishedGuard

SUITE = """\
name: own
labels: {hate: "", sexual: ""}
lexicons: {animal: [cat, dog, fish]}
functionalities:
  animals:
    expect: {hate: 0, sexual: 0}
    templates: ["a red {animal}", "a blue {animal}"]
    pairs: [{kind: casing}]
"""


def picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("guard")
    write_guard(made)
    return made


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten texts, a reply, and a picture without text; targets of hate, and of a label that no format has."""
    made = tmp_path_factory.mktemp("data") / "posts"
    texts = [f"{'a red cat and a blue dog ' * (n % 4)}{n}" for n in range(10)]
    items = [
        Item(f"i{n}", (text,), targets={"hate": float(n % 2), "spam": 1.0}, columns={"split": "test", "language": "en", "n": n})
        for n, text in enumerate(texts)
    ]
    items.append(Item("reply", ("is it red?", "no"), roles={"text": ("context", "body")}, targets={"hate": None}))
    items.append(Item("picture", image=(picture(),), columns={"split": "test"}))
    write(made, items)
    return made


def run(folder: Path, dataset: Path, to: Path, name: str = "granite", **options: object) -> GuardSummary:
    return score_with_guard(folder, name, dataset, to, GuardOptions(**options))  # type: ignore[arg-type]


def test_table_has_scores_targets_and_columns(folder: Path, dataset: Path, tmp_path: Path) -> None:
    summary = run(folder, dataset, tmp_path / "scores.parquet", columns=("n",))
    assert summary == GuardSummary(12, {NO_TEXT: 1}, 0, ("hate",), ("spam",), 0)
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.column_names == [
        *("id", "target.hate", "probability.hate", "presence", "n", "language", "tokens", "cut", "error")
    ]
    rows = {row["id"]: row for row in table.to_pylist()}
    assert list(rows) == [f"i{n}" for n in range(10)] + ["reply", "picture"]
    assert (rows["i3"]["target.hate"], rows["i3"]["n"], rows["i3"]["language"], rows["i3"]["presence"]) == (1, 3, "en", "text")
    assert rows["reply"]["target.hate"] is None
    picture = rows["picture"]
    assert (picture["probability.hate"], picture["error"], picture["tokens"], picture["presence"]) == (
        None,
        NO_TEXT,
        None,
        "image",
    )
    guard = PublishedGuard(
        load_format("granite"), "prompt", folder, lambda: AnswerModel(folder), mapping={"hate": ["social_bias"]}
    )
    texts = [item.text[0] for item in Dataset(dataset).take(range(10))]
    expected = guard.score([Content(text) for text in texts]).probabilities_NL[:, 0]
    assert [rows[f"i{n}"]["probability.hate"] for n in range(10)] == pytest.approx(expected, abs=1e-6)
    assert len(set(np.round(expected, 6))) > 5


def test_table_is_evaluated_compared_and_run_on_a_suite(folder: Path, dataset: Path, tmp_path: Path) -> None:
    files = []
    for name in ("granite", "yes-no"):
        run(folder, dataset, tmp_path / f"{name}.parquet", name)
        files.append(tmp_path / f"{name}.parquet")
    spec = EvaluationSpec(replicates=50)
    evaluation = evaluate_table(read_predictions(files[0]), "granite", spec, to=tmp_path / "evaluation")
    assert evaluation.results.overall.labels["hate"].known == 10
    found, _ = compare_sources(*files, EvaluationSpec(replicates=200))
    assert found.champion.name == str(files[0])
    suite = tmp_path / "own.yaml"
    suite.write_text(SUITE)
    items = tmp_path / "suite"
    from vigil.workflows.suite_datasets import build_suite

    build_suite(suite, items)
    run(folder, items, tmp_path / "of-suite.parquet")
    ran = run_suite(tmp_path / "of-suite.parquet", suite, to=tmp_path / "suite-results")
    assert [case.items for case in ran.results.findings.cases] == [6, 6]


def test_killed_run_resumes_and_has_the_same_scores(
    folder: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"chunk": 3, "labels": ("hate",)}
    whole = tmp_path / "whole.parquet"
    run(folder, dataset, whole, **options)
    original, calls = AnswerModel.read, iter(range(100))

    def read(self: AnswerModel, sequences: Sequence[Sequence[int]], depth: int, tokens: Sequence[int]) -> object:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(self, sequences, depth, tokens)

    to = tmp_path / "scores.parquet"
    monkeypatch.setattr(AnswerModel, "read", read)
    with pytest.raises(KeyboardInterrupt):
        run(folder, dataset, to, **options)
    assert not to.exists()
    with pytest.raises(UserError, match=r"has 2 of 4 shards of another job: turn response, not prompt|turn prompt, not response"):
        run(folder, dataset, to, turn="response", **options)
    monkeypatch.setattr(AnswerModel, "read", original)
    assert run(folder, dataset, to, **options).resumed == 6
    assert pq.read_table(to).equals(pq.read_table(whole))
    assert not list(tmp_path.glob(".*shards"))


def test_finished_shards_need_no_model(folder: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All shards were written, and the merge was killed."""
    from vigil.workflows.guard import published_guards

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(published_guards, "merge_shards", killed)
        with pytest.raises(KeyboardInterrupt):
            run(folder, dataset, tmp_path / "scores.parquet")
    monkeypatch.setattr(AnswerModel, "__init__", killed)
    assert run(folder, dataset, tmp_path / "scores.parquet").resumed == 12


def test_response_is_judged_with_its_prompt(folder: Path, dataset: Path, tmp_path: Path) -> None:
    summary = run(folder, dataset, tmp_path / "scores.parquet", "wildguard", turn="response", mapping={"hate": ("any",)})
    assert summary.unscored == {NO_CONTEXT: 10, NO_TEXT: 1}
    rows = {row["id"]: row for row in pq.read_table(tmp_path / "scores.parquet").to_pylist()}
    assert 0 < rows["reply"]["probability.hate"] < 1


def test_long_texts_are_cut_and_counted(folder: Path, dataset: Path, tmp_path: Path) -> None:
    lengths = pq.read_table(_scored(folder, dataset, tmp_path / "all.parquet"))["tokens"].drop_null().to_pylist()
    limit = sorted(lengths)[-3]
    summary = run(folder, dataset, tmp_path / "scores.parquet", max_tokens=limit)
    assert summary.cut == sum(length > limit for length in lengths) > 0
    table = pq.read_table(tmp_path / "scores.parquet")
    assert max(table["tokens"].drop_null().to_pylist()) <= limit


def _scored(folder: Path, dataset: Path, to: Path) -> Path:
    run(folder, dataset, to)
    return to


def test_labels_of_unlabelled_items_are_all_that_the_format_maps(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "traffic", [Item("1", ("a red cat",))])
    summary = run(folder, tmp_path / "traffic", tmp_path / "scores.parquet")
    assert summary.labels == ("hate", "profanity", "sexual", "violence")


def test_mapping_replaces_the_formats(folder: Path, dataset: Path, tmp_path: Path) -> None:
    mapping = {"spam": ("unethical_behavior",), "hate": ("harm", "violence")}
    summary = run(folder, dataset, tmp_path / "scores.parquet", mapping=mapping)
    assert (summary.labels, summary.unmapped) == (("hate", "spam"), ())
    one, other = (run(folder, dataset, tmp_path / f"{key}.parquet", mapping={"hate": (key,)}) for key in mapping["hate"])
    assert one.labels == other.labels == ("hate",)
    scores = [
        pq.read_table(tmp_path / f"{n}.parquet")["probability.hate"].to_pylist()[:10] for n in ("scores", "harm", "violence")
    ]
    assert scores[0] == pytest.approx(np.maximum(scores[1], scores[2]), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "wildguard",
            {},
            r"format wildguard maps no label of the taxonomy safety; .*LABEL=CATEGORY; its categories are any",
        ),
        ("granite", {"labels": ("hat",)}, r"--labels hat: format granite has no category for it \(did you mean hate\?\); map it"),
        ("granite", {"mapping": {"spam": ("spam",)}}, "--map spam=spam: no category of format granite; its categories are harm,"),
        ("granite", {"mapping": {"spam": ("any",)}}, "--map spam=any: no category of format granite"),
        ("yes-no", {"mapping": {"spam": ("spam",)}}, "--map: format yes-no has no categories; it reads the policy text"),
        ("granite", {"taxonomy": "safty"}, r"no taxonomy safty comes with Vigil \(did you mean safety\?\)"),
        ("granite", {"columns": ("color",)}, "--columns color: .* has no such column; it has .*language"),
        ("granite", {"split": "train"}, "has no split train"),
        ("granite", {"where": "n > 99"}, "posts: no item to score"),
        ("granite", {"max_tokens": 20}, "--max-tokens: the prompt without content has"),
    ],
)
def test_option_that_cannot_be_used_is_one_clear_error(
    name: str, options: dict[str, object], message: str, folder: Path, dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(folder, dataset, tmp_path / "scores.parquet", name, **options)
    assert not (tmp_path / "scores.parquet").exists()


def test_label_without_policy_text_is_one_clear_error(folder: Path, dataset: Path, tmp_path: Path) -> None:
    taxonomy = tmp_path / "own.yaml"
    taxonomy.write_text("taxonomy: {name: own, heads: {all: {labels: {hate: {}, spam: {definition: advertisements}}}}}")
    with pytest.raises(UserError, match=r"taxonomy .*own.yaml: no policy text for hate; write at least a definition"):
        run(folder, dataset, tmp_path / "scores.parquet", "yes-no", taxonomy=str(taxonomy))
    assert run(folder, dataset, tmp_path / "scores.parquet", "yes-no", taxonomy=str(taxonomy), labels=("spam",)).labels == (
        "spam",
    )


def test_output_that_is_not_of_this_command_is_kept(folder: Path, dataset: Path, tmp_path: Path) -> None:
    to = tmp_path / "scores.parquet"
    to.write_bytes(b"important")
    with pytest.raises(UserError, match="already exists and was not written by `vigil guard run`"):
        run(folder, dataset, to)
    with pytest.raises(UserError, match=r"must end in \.parquet"):
        run(folder, dataset, tmp_path / "scores.csv")


def test_model_that_does_not_exist_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        model_path(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="hub nobody/nothing"):
        model_path("nobody/nothing")


@pytest.fixture(scope="module")
def call() -> Callable[..., Result]:
    app = typer.Typer()
    commands.register(app)
    return lambda *arguments: CliRunner().invoke(app, ["guard", *map(str, arguments)], env={"COLUMNS": "250"})


def test_command_prints_what_was_scored(call: Callable[..., Result], folder: Path, dataset: Path, tmp_path: Path) -> None:
    to = tmp_path / "scores.parquet"
    given = ("--model", folder, "--format", "llama-guard", "--map", "hate=S10", "--map", "spam=S2,S8", "--labels", "hate,spam")
    result = call("run", dataset, *given, "--to", to)
    assert result.exit_code == 0, result.output
    assert f"{to}: 12 items; labels hate, spam" in result.output
    assert "not scored, no text: 1" in result.output
    assert "unknown to the format" not in result.output
    result = call("run", dataset, *given[:4], "--map", "hate", "--to", to)
    assert isinstance(result.exception, UserError)
    assert "--map hate: write LABEL=CATEGORY, such as hate=S10" in str(result.exception)


def test_command_lists_formats_and_prints_a_page(call: Callable[..., Result]) -> None:
    listed = call("formats").output
    assert "llama-guard: Llama Guard 3 8B (Meta 2024)" in listed
    assert "licence: Apache-2.0; card: https://huggingface.co/allenai/wildguard" in listed
    assert call("formats", "granite").output.startswith("# Read at:")
    assert isinstance(call("formats", "granit").exception, UserError)


def test_model_of_another_format_is_refused_before_its_weights_are_read(
    dataset: Path, tiny_lm: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(AnswerModel, "__init__")
    with pytest.raises(
        UserError, match=r"format llama-guard: its tokenizer has no special token <\|begin_of_text\|>, .*; choose"
    ):
        run(tiny_lm("llama"), dataset, tmp_path / "scores.parquet", "llama-guard", labels=("hate",))
