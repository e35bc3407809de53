"""Rows are read from any of the formats, plain or compressed, and no file makes the reader hold more than its limits."""

import csv
import gzip
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.errors import Problems, UserError
from vigil_data.importers.bounded_lines import Limits
from vigil_data.importers.table_reader import read_rows

ROWS: list[dict[str, Any]] = [{"id": "1", "text": 'a, "b"; c\td'}, {"id": "2", "text": "two\nlines"}, {"id": "3", "text": None}]


def read(file: Path, **options: Any) -> list[dict[str, Any]]:
    problems = Problems()
    rows = [row.values for row in read_rows(file, problems, **options)]
    problems.raise_if_any()
    return rows


def errors(file: Path, **options: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        read(file, **options)
    return [line.removeprefix(f"{file.parent}/") for line in caught.value.lines]


def jsonl_bytes() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def csv_bytes(delimiter: str = ",", end: str = "\r\n", first: str = "") -> bytes:
    text = io.StringIO(newline="")
    text.write(first)
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end)
    writer.writerows([list(ROWS[0]), *(["" if cell is None else cell for cell in row.values()] for row in ROWS)])
    return text.getvalue().encode()


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.jsonl", jsonl_bytes()),
        ("m.jsonl", b"\xef\xbb\xbf" + jsonl_bytes().replace(b"\n", b"\r\n")),
        ("m.JSONL.GZ", gzip.compress(jsonl_bytes()[:30]) + gzip.compress(jsonl_bytes()[30:])),
        ("m.jsonl.zst", zstd(jsonl_bytes()[:30]) + zstd(jsonl_bytes()[30:])),
        ("m.csv", csv_bytes()),
        ("m.csv", b"\xef\xbb\xbf" + csv_bytes(";")),
        ("m.csv", csv_bytes("\t", "\n")),
        ("m.csv", csv_bytes(";", first="sep=;\r\n")),
        ("m.csv.gz", gzip.compress(csv_bytes(";"))),
        ("m.csv.zst", zstd(csv_bytes(";"))),
        ("m.tsv", csv_bytes("\t")),
        ("m.tsv.gz", gzip.compress(csv_bytes("\t"))),
    ],
    ids=range(12),
)
def test_read_rows_of_every_format(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == ROWS


def test_read_rows_with_a_given_delimiter(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(csv_bytes("|"))
    assert read(tmp_path / "m.csv", delimiter="|") == ROWS
    (tmp_path / "m.csv").write_bytes(csv_bytes("\r".join(" ")).replace(b"\r\n", b"\r"))
    assert [list(row.values()) for row in read(tmp_path / "m.csv", delimiter=" ")] == [list(row.values()) for row in ROWS]


cells = st.text(max_size=6, alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(cells, cells, cells), max_size=5), st.sampled_from(",;\t"))
def test_read_rows_of_csv_equals_what_was_written(rows: list[tuple[str, str, str]], delimiter: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.csv"
        with file.open("w", encoding="utf-8", newline="") as to:
            writer = csv.writer(to, delimiter=delimiter, quoting=csv.QUOTE_ALL)
            writer.writerows([("id", "text, or; more", "last"), *rows])
        assert [tuple(cell or "" for cell in row.values()) for row in read(file)] == rows


def test_read_rows_of_damaged_compressed_files(tmp_path: Path) -> None:
    for name, content in {
        "cut.jsonl.gz": gzip.compress(jsonl_bytes())[:-12],
        "cut.jsonl.zst": zstd(jsonl_bytes())[:-5],
        "not.csv.gz": b"id,text\n1,x\n",
        "not.csv.zst": b"id,text\n1,x\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        (line,) = errors(tmp_path / name)
        assert line.startswith(f"{name} is not a sound {'gzip' if name.endswith('gz') else 'zstd'} file: ")
    (tmp_path / "m.parquet.gz").write_bytes(b"")
    assert "unknown format" in errors(tmp_path / "m.parquet.gz")[0]


def test_read_rows_limits_lines_records_and_fields(tmp_path: Path) -> None:
    limits = Limits(line=100, field=50, media=20)
    (tmp_path / "m.jsonl").write_text(
        json.dumps({"id": "x" * 200}) + "\n" + json.dumps({"id": "2", "text": ["y" * 60]}) + '\n{"id": "3"}\n' + " " * 101
    )
    assert errors(tmp_path / "m.jsonl", limits=limits) == [
        "m.jsonl:1: a line of 0.000211 MB, more than 0.0001 MB; raise the limit with --max-line-mb if that is intended",
        "m.jsonl:2: text has 6e-05 MB, more than 5e-05 MB; raise the limit with --max-field-mb if that is intended",
        "m.jsonl:4: a line of 0.000101 MB, more than 0.0001 MB; raise the limit with --max-line-mb if that is intended",
    ]
    (tmp_path / "exact.jsonl").write_text('{"id": "' + "x" * 50 + '"}' + " " * 40)
    assert len(read(tmp_path / "exact.jsonl", limits=limits)) == 1
    (tmp_path / "m.csv").write_text("id,text\n" + "1," + "y" * 60 + "\n2,fine\n3,x" + "x" * 120)
    lines = errors(tmp_path / "m.csv", limits=limits)
    assert [line.split(":", 2)[1] for line in lines] == ["2", "4"]
    (tmp_path / "open.csv").write_text('id,text\n1,fine\n2,"never closed\n' + "line\n" * 100)
    (line,) = errors(tmp_path / "open.csv", limits=limits)
    assert line.startswith("open.csv:3: a quotation mark that is never closed, or a record of more than 0.0001 MB")
    many = "".join(f"{n},fine\n" for n in range(500))
    (tmp_path / "many.csv").write_text("id,text\n" + many)
    assert len(read(tmp_path / "many.csv", limits=limits)) == 500
    pq.write_table(pa.table({"id": ["1", "2"], "image": [b"x" * 20, b"x" * 21]}), tmp_path / "m.parquet")
    assert errors(tmp_path / "m.parquet", limits=limits)[0].startswith("m.parquet: row 2: image has 2.1e-05 MB")


def test_read_rows_of_parquet_reports_strings_that_are_not_utf8(tmp_path: Path) -> None:
    damaged = pa.array([b"fine", b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"id": ["1", "2"], "text": damaged}), tmp_path / "m.parquet")
    assert errors(tmp_path / "m.parquet") == ["m.parquet: a string of row 1 or of the rows after it is not UTF-8"]


PEAK = """
import sys
from pathlib import Path
from vigil_data.dataset import ingest
from vigil_data.dataset.dataset import write
from vigil_data.errors import UserError
from vigil_data.importers.manifest import Manifest

def peak():  # getrusage would count the peak of the process that started this one
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

ingest._CHUNK_BYTES = 4_000_000
small, file, to = map(Path, sys.argv[1:])
manifest = Manifest(small); manifest.check(); write(to / "small", manifest.items())  # loads every library
before = peak()
try:
    manifest = Manifest(file); manifest.check(); write(to / "large", manifest.items()); print("stored")
except UserError as error:
    print(error)
print(peak() - before)
"""


@pytest.mark.parametrize("name", ["line.jsonl", "line.jsonl.gz", "record.csv.gz", "many.jsonl"])
def test_import_of_a_large_file_has_bounded_memory(tmp_path: Path, name: str) -> None:
    """A file of 120 MB, of one line or of many rows; one that is held in memory takes at least twice its size."""
    size = 120_000_000
    file = tmp_path / name
    with gzip.open(file, "wb", 1) if name.endswith("gz") else file.open("wb") as to:
        if name == "many.jsonl":
            for row in range(600):
                to.write(b'{"id": "%d", "split": "train", "text": "%s"}\n' % (row, b"%05d" % row * (size // 600 // 5)))
        else:
            to.write(b'id,text\n1,"' if "csv" in name else b'{"id": "1", "text": "')
            for _ in range(size // 1_000_000):
                to.write(b"word\n" * 200_000 if "csv" in name else b"word " * 200_000)
            to.write(b'"\n' if "csv" in name else b'"}\n')
    (tmp_path / "small.jsonl").write_bytes(jsonl_bytes())
    ran = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "small.jsonl", file, tmp_path], capture_output=True, text=True, check=True
    )
    outcome, grown = ran.stdout.splitlines()
    assert ("stored" if name == "many.jsonl" else "more than 16 MB") in outcome
    assert int(grown) < size
