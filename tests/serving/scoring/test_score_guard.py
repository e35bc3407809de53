"""`vigil score` with a guard: the table says under which policy texts items were decided."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from vigil.cli import serve
from vigil_data.dataset.dataset import write
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_data.prompts.clauses import digest_of
from vigil_serving.bundle.policy_text import LabelText, PolicyText
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.scoring.score import score_dataset

NEW_YAML = "name: new\nheads: {conduct: {labels: {scam: {definition: 'Names a cat, or a dog.'}}}}\n"
LONG = " ".join(["a red cat and a blue dog"] * 20)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "dataset"
    items = [Item(f"{n}", (f"a red cat {n}",)) for n in range(6)]
    assert write(path, [*items, Item("long", (LONG,)), Item("broken", image=(b"no picture",))]).kept >= 7
    return path


def test_score_marks_every_row_with_the_texts_that_were_read(exported_guard, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(NEW_YAML)
    own = score_dataset(exported_guard.bundle, dataset, tmp_path / "own.parquet", threads=1)
    other = score_dataset(exported_guard.bundle, dataset, tmp_path / "new.parquet", threads=1, policy_text=tmp_path / "new.yaml")
    assert (own.not_evaluated, own.uncalibrated) == ((), ())
    assert (other.not_evaluated, other.uncalibrated) == (("scam",), ("scam",))
    before, after = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("own", "new"))
    assert before.column_names == after.column_names
    for name in ("promotion", "tobacco"):
        assert after[f"policy_text.{name}"].to_pylist() == before[f"policy_text.{name}"].to_pylist()
        assert after[f"probability.{name}"] == before[f"probability.{name}"]
    assert set(after["policy_text.scam"].to_pylist()) == {digest_of("Category: scam\nDefinition: Names a cat, or a dog.")}
    assert set(before["policy_text.scam"].to_pylist()).isdisjoint(after["policy_text.scam"].to_pylist())
    assert after["not_evaluated"].to_pylist() == [["scam"]] * after.num_rows
    assert before["not_evaluated"].to_pylist() == [[]] * after.num_rows
    rows = {row["id"]: row for row in after.to_pylist()}
    assert rows["0"]["truncated"] == []
    assert [(cut["modality"], cut["index"]) for cut in rows["long"]["truncated"]] != []
    assert all(cut["tokens"] > 0 for cut in rows["long"]["truncated"])
    texts = PolicyText({"scam": LabelText("Category: scam\nDefinition: Names a cat, or a dog.")})
    scorer = Scorer(exported_guard.bundle, threads=1, policy_text=texts)
    [decision] = scorer.score([Item("0", ("a red cat 0",))])
    assert rows["0"]["probability.scam"] == pytest.approx(decision.probabilities["scam"], abs=1e-6)
    assert len(after.schema.metadata[b"vigil.policy_text"]) == 64
    assert b"vigil.policy_text" not in before.schema.metadata


def test_shards_of_other_policy_texts_are_refused(exported_guard, dataset: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "new.yaml").write_text(NEW_YAML)
    monkeypatch.setattr("vigil_serving.scoring.score.merge_shards", _fail)
    with pytest.raises(KeyboardInterrupt):
        score_dataset(exported_guard.bundle, dataset, tmp_path / "out.parquet", threads=1)
    with pytest.raises(UserError, match="shards of another job: policy_text none, not"):
        score_dataset(exported_guard.bundle, dataset, tmp_path / "out.parquet", threads=1, policy_text=tmp_path / "new.yaml")


def _fail(*_: object) -> None:
    raise KeyboardInterrupt


def test_score_command_prints_what_was_not_evaluated(exported_guard, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(NEW_YAML)
    app = typer.Typer()
    serve.register(app)
    options = ["--to", str(tmp_path / "out.parquet"), "--threads", "1", "--policy-text", str(tmp_path / "new.yaml")]
    done = CliRunner().invoke(app, ["score", str(exported_guard.bundle), str(dataset), *options])
    assert done.exit_code == 0, done.output
    assert "not evaluated with this policy text: scam; see `vigil evaluate BUNDLE`" in done.output
    assert "uncalibrated, decided from 0.5: scam" in done.output
