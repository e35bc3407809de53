"""`vigil score`: a dataset scored into a table, without torch."""

import inspect
import json
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil.cli.serve import score as command
from vigil_data.dataset.dataset import write
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_serving.bundle.manifest import METADATA, write_manifest
from vigil_serving.parity.cases import make_item
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.scoring.job_spec import JobSpec
from vigil_serving.scoring.score import CHUNK, ScoringSummary, score_dataset

LABELS = ("scam", "promotion", "tobacco")
COLUMNS = [
    "id",
    *(f"probability.{x}" for x in LABELS),
    *(f"decision.{x}" for x in LABELS),
    *("evidence", "presence", "cut", "error", "bundle", "policy"),
]


def _truncated(png: bytes) -> bytes:
    """Return an image with a complete header, so that a dataset accepts it, and with incomplete pixels."""
    return png[: len(png) - len(png) // 3]


@pytest.fixture(scope="module")
def items(exported) -> list[Item]:
    patterns = [["text"], ["text", "image"], ["audio"], ["image"], ["text", "image", "audio"]]
    made = [make_item(patterns[n % 5], n, exported.inputs) for n in range(11)]
    picture = make_item(["image"], 6, exported.inputs).image[0]
    made.append(Item("truncated", image=(_truncated(picture),)))
    return [
        Item(
            f"{n:02}-{item.id}",
            item.text,
            item.image,
            item.audio,
            columns={"split": "test" if n % 2 else "train", "n": n},
            roles={"text": ("transcript",) * len(item.text), "image": ("cover",) * len(item.image)} if n % 3 else {},
            times=((12.5, 17.0),) * len(item.text) if n % 2 else (),
        )
        for n, item in enumerate(made)
    ]


@pytest.fixture(scope="module")
def dataset(items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "dataset"
    assert write(path, items).kept == len(items)
    return path


def test_score_writes_the_runtime_decisions(exported, dataset: Path, items: list[Item], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    to = tmp_path / "deep" / "out.parquet"
    found = score_dataset(exported.bundle, dataset, to, threads=1, chunk=5, progress=lambda *call: seen.append(call))
    assert (found.items, found.errors, found.resumed) == (12, 1, 0)
    assert seen == [("scoring", done, 12) for done in (0, 5, 10, 12)]
    table = pq.read_table(to)
    assert table.column_names == COLUMNS
    scorer = Scorer(exported.bundle, threads=1)
    rows = table.to_pylist()
    for decision, row in zip(scorer.score(items), rows, strict=True):
        assert (row["id"], row["error"], row["bundle"], row["policy"]) == (
            decision.id,
            decision.error,
            scorer.bundle.digest,
            None,
        )
        for label in LABELS:
            if decision.error:
                assert (row[f"probability.{label}"], row[f"decision.{label}"], row["evidence"]) == (None, None, None)
            else:
                assert row[f"probability.{label}"] == pytest.approx(decision.probabilities[label], abs=1e-5)
                assert row[f"decision.{label}"] == (label in decision.labels)
        names = ("label", "modality", "index", "start", "stop", "role", "time")
        written = {tuple(tuple(v) if isinstance(v, list) else v for v in map(e.get, names)) for e in row["evidence"] or ()}
        assert written == {(e.label, e.modality, *astuple(e.span)) for e in decision.evidence}
    assert {e["role"] for row in rows for e in row["evidence"] or ()} == {"body", "transcript", "cover"}
    assert rows[11]["error"]
    assert sum(row[f"decision.{label}"] is True for row in rows for label in LABELS) == sum(found.decided.values()) > 0
    assert table.schema.field("bundle").type == pa.dictionary(pa.int32(), pa.string())
    assert set(table.schema.metadata) >= {b"vigil.bundle", b"vigil.dataset_version", b"vigil.variant"}
    assert [path.name for path in to.parent.iterdir()] == ["out.parquet"]


def test_score_writes_lance_and_replaces_only_its_own_tables(exported, dataset: Path, tmp_path: Path) -> None:
    parquet, to = tmp_path / "out.parquet", tmp_path / "out.lance"
    score_dataset(exported.bundle, dataset, parquet, threads=1, chunk=5)
    for split in (None, "train", None):
        found = score_dataset(exported.bundle, dataset, to, threads=1, chunk=5, split=split)
        table = lance.dataset(str(to))
        assert table.count_rows() == found.items == (12 if split is None else 6)
    wanted = pq.read_table(parquet).rename_columns([name.replace(".", ":") for name in COLUMNS])
    assert table.to_table().to_pylist() == wanted.to_pylist()
    assert table.schema.metadata == pq.read_schema(parquet).metadata
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.lance", "out.parquet"]
    with pytest.raises(UserError, match=r"items\.lance: already exists and was not written by `vigil score`"):
        score_dataset(exported.bundle, dataset, dataset / "items.lance", threads=1)
    pq.write_table(pa.table({"id": ["x"]}), parquet)
    with pytest.raises(UserError, match=r"out\.parquet: already exists and was not written by"):
        score_dataset(exported.bundle, dataset, parquet, threads=1)


def test_score_selects_rows_and_refuses_invalid_options(exported, bundle_copy: Path, dataset: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a.parquet", tmp_path / "b.parquet"
    assert score_dataset(exported.bundle, dataset, a, split="train", threads=1).items == 6
    assert score_dataset(exported.bundle, dataset, a, split="train", where="n >= 4", threads=1, chunk=1).items == 4
    assert [row["id"][:2] for row in pq.read_table(a).to_pylist()] == ["04", "06", "08", "10"]
    assert score_dataset(exported.bundle, dataset, a, where="n > 99", threads=1) == ScoringSummary(
        0, 0, dict.fromkeys(LABELS, 0), {}, 0
    )
    assert pq.read_table(a).column_names == COLUMNS
    for asked, message in [
        ({"split": "nowhere"}, "has no split nowhere"),
        ({"where": "m = 1"}, "invalid condition 'm = 1'"),
        ({"variant": "int3"}, "has no variant int3; it has fp32"),
    ]:
        with pytest.raises(UserError, match=message):
            score_dataset(exported.bundle, dataset, b, **asked)
    with pytest.raises(UserError, match=r"must end in \.parquet \(one file\) or \.lance"):
        score_dataset(exported.bundle, dataset, tmp_path / "b.csv")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        score_dataset(exported.bundle, dataset, tmp_path / "folder.parquet")
    (bundle_copy / "thresholds.json").write_text("{}")
    with pytest.raises(UserError, match=r"thresholds\.json was changed"):
        score_dataset(bundle_copy, dataset, b)
    assert not list(tmp_path.glob("*b*")), "refused jobs leave no files"
    assert not list(tmp_path.glob(".*"))


def test_score_names_the_variant(bundle_copy: Path, exported, dataset: Path, tmp_path: Path) -> None:
    metadata = json.loads((bundle_copy / METADATA).read_text())
    metadata["variants"]["other"] = metadata["variants"]["fp32"]
    (bundle_copy / METADATA).write_text(json.dumps(metadata))
    write_manifest(bundle_copy)
    score_dataset(bundle_copy, dataset, tmp_path / "out.parquet", variant="other", threads=1)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.metadata[b"vigil.variant"] == b"other"
    assert table.num_rows == 12


def test_score_command_imports_neither_torch_nor_ray(exported, dataset: Path, tmp_path: Path) -> None:
    program = """
import sys
import typer
from vigil.cli import serve
app = typer.Typer()
serve.register(app)
app(["score", *sys.argv[1:]], standalone_mode=False)
loaded = {"torch", "transformers", "timm", "lightning", "ray"} & set(sys.modules)
assert not loaded, loaded
"""
    to = tmp_path / "out.parquet"
    command = [sys.executable, "-c", program, str(exported.bundle), str(dataset), "--to", str(to), "--threads", "1"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("scoring")] == [], "nothing but progress"
    assert pq.read_table(to).num_rows == 12
    assert "12 items in" in done.stdout
    assert " items/s): " in done.stdout
    assert "1 items could not be decoded" in done.stdout
    vigil = str(Path(sys.executable).with_name("vigil"))
    done = subprocess.run(
        [vigil, "score", *command[3:], "--workers", "2"], check=False, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (2, "error: --workers 2: needs --ray\n")


def test_score_command_has_the_default_chunk() -> None:
    assert inspect.signature(command).parameters["chunk"].default == CHUNK


@given(st.integers(0, 500), st.integers(1, 60))
def test_job_spec_shards_cover_every_row_once(rows: int, chunk: int) -> None:
    spec = JobSpec(
        bundle="b",
        dataset="d",
        version=1,
        written="t",
        split=None,
        where=None,
        variant="fp32",
        chunk=chunk,
        rows=rows,
        columns="c",
    )
    spans = [spec.span(number) for number in range(spec.shards)]
    assert [row for span in spans for row in range(span.start, span.stop)] == list(range(rows))
    assert all(spec.size(number) == len(range(spans[number].start, spans[number].stop)) > 0 for number in range(spec.shards))
