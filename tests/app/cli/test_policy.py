"""`vigil policy`: check with all mistakes, compile or report as infeasible, show, and replay."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from vigil import cli
from vigil.cli import policy
from vigil.workflows.policies import InfeasibleError
from vigil_data.errors import UserError
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_training.runs.run import Run

GOOD = """\
name: house-rules
version: 4
actions:
  remove:
    must:
      - precision at least 85 %
    appeals: {wrong: 30 %, right: 5 %, cost: 2}
  review: {must: [at most 4 % of traffic], cost: 0.4}
labels:
  scam: [review, remove]
  spam: [review]
"""


@pytest.fixture(scope="module")
def call():
    app = typer.Typer()
    policy.register(app)
    return lambda *arguments: CliRunner().invoke(app, ["policy", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Write predictions of a validation and a test split, and of another model on the test split."""
    folder = tmp_path_factory.mktemp("tables")
    for seed, split in enumerate(("validation", "test")):
        random, n = np.random.default_rng(seed), 8000
        base = {"id": [f"{split}-{i}" for i in range(n)], "author": random.integers(0, 3000, n), "presence": ["text"] * n}
        scores = {}
        for label in ("spam", "scam"):
            positive = random.random(n) < 0.1
            scores[label] = random.normal(size=n) + 3.2 * positive
            base[f"target.{label}"] = pa.array(positive.astype(np.float32), mask=random.random(n) < 0.3)
        for name, noise in (("", 0.0), ("other-", 0.4)):
            columns = {}
            for label, score in scores.items():
                log_odds = np.log(1 / 9) + 3.2 * (score + noise * random.normal(size=n)) - 3.2**2 / 2
                columns[f"probability.{label}"] = (1 / (1 + np.exp(-log_odds))).astype(np.float32)
            pq.write_table(pa.table(base | columns), folder / f"{name}{split}.parquet")
    return folder


@pytest.fixture
def good(tmp_path):
    (tmp_path / "good.yaml").write_text(GOOD)
    return tmp_path / "good.yaml"


def lines_of(result):
    assert isinstance(result.exception, UserError), result.output
    return result.exception.lines


def test_policy_check_reports_every_mistake_with_its_line(call, good, tmp_path):
    (tmp_path / "bad.yaml").write_text(GOOD.replace("precision at", "precison at").replace("cost: 0.4", "costs: 0.4"))
    (tmp_path / "worse.yaml").write_text(GOOD.replace("spam: [review]", "spam: [limit]"))
    result = call("check", good, tmp_path / "bad.yaml", tmp_path / "worse.yaml")
    assert f"ok  {good}: 2 labels, review, remove; 2 constraints" in result.output
    lines = lines_of(result)
    beginnings = ("bad.yaml:6: actions.remove.must[0]", "bad.yaml:8: actions.review.costs", "worse.yaml:11: labels.spam")
    assert [line.startswith(f"{tmp_path}/{begin}") for line, begin in zip(lines, beginnings, strict=True)] == [True] * 3
    assert "did you mean cost?" in lines[1]
    assert "leads to limit, which is not under actions" in lines[2]
    assert call("check", good).exit_code == 0
    good.write_text("name: x\nactions: {remove: {must: [precision at least 90 %]}}\nlabels: {spam: [remove]}\n")
    assert call("check", good).output == f"ok  {good}: 1 label, remove; 1 constraint\n"
    assert str(tmp_path / "absent.yaml") in lines_of(call("check", tmp_path / "absent.yaml"))[0]


def test_policy_compile_show_and_replay(call, good, tables, tmp_path):
    one = tmp_path / "one.json"
    result = call("compile", good, tables / "validation.parquet", "--to", one, "--cluster", "author")
    assert result.exit_code == 0, result.output
    compiled = CompiledPolicy.read(one)
    assert (compiled.name, compiled.version, compiled.facts["unit"]) == ("house-rules", 4, "author")
    for text in ("scam/remove", "precision at least 85 %", "harm caught", "per 1,000 items", f"policy: {one}"):
        assert text in result.output
    shown = call("show", one)
    assert shown.exit_code == 0
    assert f"{compiled.thresholds()['scam']['remove']:.4g}" in shown.output

    (tmp_path / "milder.yaml").write_text(GOOD.replace("85 %", "70 %"))
    two = tmp_path / "two.json"
    assert call("compile", tmp_path / "milder.yaml", tables / "validation.parquet", "--to", two).exit_code == 0
    replayed = call("replay", one, two, "--on", tables / "test.parquet", "--by", "presence", "--to", tmp_path / "replay")
    assert replayed.exit_code == 0, replayed.output
    found = json.loads((tmp_path / "replay" / "replay.json").read_text())
    changes = pq.read_table(tmp_path / "replay" / "changes.parquet")
    assert found["changed"] == changes.num_rows > 0
    assert f"{found['changed']:,} of 8,000 decisions change" in replayed.output
    assert found["after"]["name"] == "house-rules"

    models = call("replay", tables / "test.parquet", tables / "other-test.parquet", "--policy", one, "--cluster", "author")
    assert models.exit_code == 0, models.output
    assert "authors, are affected" in models.output


def test_policy_compile_infeasible_exits_with_1_and_writes_nothing(good, tables, tmp_path, monkeypatch, capsys):
    good.write_text(GOOD.replace("85 %", "99.9 %"))

    def main(*arguments):
        monkeypatch.setattr("sys.argv", ["vigil", "policy", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err

    status, told = main("compile", good, tables / "validation.parquet", "--to", tmp_path / "x.json")
    assert status == 1
    lines = told.splitlines()
    assert lines[0] == "error: policy house-rules version 4 is infeasible"
    assert "scam/remove: precision at least 99.9 % cannot be shown at 95 % confidence: the best lower bound" in lines[1]
    assert lines[-1] == "error: nothing was written"
    assert not (tmp_path / "x.json").exists()
    (tmp_path / "x.json").write_text("{}")
    assert (
        main("compile", good, tables / "validation.parquet", "--to", tmp_path / "x.json")[1]
        .splitlines()[-1]
        .endswith("x.json is unchanged")
    )
    assert main("check", tmp_path / "x.json", good)[0] == 2


def test_policy_compile_writes_into_a_run_and_replays(call, trained, tmp_path):
    run = Run(shutil.copytree(trained.path, tmp_path / "run"))
    file = tmp_path / "tiny.yaml"
    file.write_text("name: tiny\nactions: {label: {must: [at most 60 % of traffic]}}\nlabels: {cat: [label], bright: [label]}\n")
    with pytest.raises(UserError, match="has no compiled policy; compile one"):
        raise call("show", run.path).exception
    result = call("compile", file, run.path)
    assert result.exit_code == 0, result.output
    compiled = run.read_policy()
    assert compiled is not None
    assert compiled.facts["split"] == "validation"
    assert ("calibration" in compiled.facts) == run.calibration.is_file()
    assert call("show", run.path).exit_code == 0
    again = call("replay", run.path, run.path)
    assert again.exit_code == 0, again.output
    assert "0 of" in again.output


def test_policy_apply_decides_on_scores_without_targets(call, good, tables, tmp_path):
    compiled, decided = tmp_path / "one.json", tmp_path / "out" / "decisions.parquet"
    assert call("compile", good, tables / "validation.parquet", "--to", compiled).exit_code == 0
    test = pq.read_table(tables / "test.parquet")
    bare = test.select(["id", "probability.spam", "probability.scam"])
    pq.write_table(bare, tmp_path / "scores.parquet")
    result = call("apply", compiled, tmp_path / "scores.parquet", "--to", decided)
    assert result.exit_code == 0, result.output
    for text in ("8,000 items", "share of traffic at most 4 %", "confirmed", "no target is known", f"decisions: {decided}"):
        assert text in result.output
    assert "precision at least" not in result.output
    decisions = pq.read_table(decided)
    policy = CompiledPolicy.read(compiled)
    codes = policy.decide_codes(
        np.stack([bare.column(f"probability.{k}").to_numpy() for k in policy.labels], 1), policy.labels, None
    )
    assert decisions.column("action").to_pylist() == [policy.actions[code] for code in codes.actions_N]
    # With targets, the constraints on them are measured again; an item that could not be scored is named.
    failed = test.append_column("error", pa.array(["cannot be decoded"] + [None] * 7999, pa.string()))
    pq.write_table(failed, tmp_path / "scores.parquet")
    result = call("apply", compiled, tmp_path / "scores.parquet", "--to", decided, "--cluster", "author")
    assert "precision at least 85 %" in result.output
    assert "1 items have an error" in result.output
    assert pq.read_table(decided).num_rows == 7999
    # Replay takes the same table.
    pq.write_table(bare, tmp_path / "scores.parquet")
    replayed = call("replay", compiled, compiled, "--on", tmp_path / "scores.parquet")
    assert replayed.exit_code == 0, replayed.output
    assert "0 of 8,000 decisions change" in replayed.output


def test_policy_apply_refuses_scores_that_do_not_fit(call, good, tables, tmp_path):
    compiled, scores = tmp_path / "one.json", tmp_path / "scores.parquet"
    assert call("compile", good, tables / "validation.parquet", "--to", compiled).exit_code == 0
    test = pq.read_table(tables / "test.parquet")
    pq.write_table(test.drop_columns(["probability.scam"]), scores)
    wanted = f"{scores}: has no column probability.scam, and policy house-rules acts on scam"
    assert lines_of(call("apply", compiled, scores, "--to", tmp_path / "d.parquet")) == (wanted,)
    pq.write_table(pa.concat_tables([test.slice(0, 5), test.slice(0, 2)]), scores)
    (line,) = lines_of(call("apply", compiled, scores, "--to", tmp_path / "d.parquet"))
    assert "repeat an id: 2, the first id is test-0" in line
    pq.write_table(test, scores)
    assert "column team is absent" in lines_of(call("apply", compiled, scores, "--to", "d.parquet", "--cluster", "team"))[0]
    assert "not a compiled policy" in lines_of(call("apply", good, scores, "--to", tmp_path / "d.parquet"))[0]
    assert not (tmp_path / "d.parquet").exists()


def test_policy_compile_refuses_labels_that_depend_on_the_score(call, good, tables, tmp_path):
    """Every item of p >= .5 is labelled, and a tenth of the others, as after a stratified review."""
    table, to = pq.read_table(tables / "validation.parquet"), tmp_path / "one.json"
    inclusion = np.where(table.column("probability.scam").to_numpy() >= 0.5, 1.0, 0.1)
    unknown = np.random.default_rng(7).random(8000) >= inclusion
    for name in ("target.spam", "target.scam"):
        masked = pa.array(table.column(name).to_numpy(zero_copy_only=False), mask=unknown, from_pandas=True)
        table = table.set_column(table.column_names.index(name), name, masked)
    pq.write_table(table, tmp_path / "reviewed.parquet")
    refused = call("compile", good, tmp_path / "reviewed.parquet", "--to", to)
    assert "label scam: the labelled items are not a random sample" in lines_of(refused)[0]
    assert not to.exists()
    assumed = call("compile", good, tmp_path / "reviewed.parquet", "--to", to, "--assume-random")
    assert assumed.exit_code == 0, assumed.output
    assert "guarantees hold for items like the labelled ones only" in call("show", to).output


def test_policy_refuses_invalid_arguments(call, good, tables, tmp_path):
    validation, one = tables / "validation.parquet", tmp_path / "one.json"
    assert "name the output file with --to" in lines_of(call("compile", good, validation))[0]
    assert call("compile", good, validation, "--to", one).exit_code == 0
    assert "name the predictions with --on" in lines_of(call("replay", one, one))[0]
    assert "has no policy; name a compiled one with --policy" in lines_of(call("replay", one, validation, "--on", validation))[0]
    assert "not a compiled policy; name a .json file" in lines_of(call("show", good))[0]
    absent = tmp_path / "absent.json"
    assert lines_of(call("show", absent)) == (f"{absent} does not exist; compile a policy with `vigil policy compile`",)
    (tmp_path / "text.json").write_text("no JSON", encoding="utf-8")
    assert "cannot be read as a compiled policy" in lines_of(call("show", tmp_path / "text.json"))[0]
    assert "column region is absent" in lines_of(call("replay", one, one, "--on", validation, "--by", "region"))[0]
    good.write_text(GOOD.replace("spam", "fraud"))
    assert "no predictions of fraud; there are spam, scam" in lines_of(call("compile", good, validation, "--to", one))[0]


def test_infeasible_error_is_a_failure():
    assert InfeasibleError("x").status == 1
