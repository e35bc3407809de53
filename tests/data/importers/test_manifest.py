"""A manifest becomes the items it says, or every mistake of it is named by row and nothing is written."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from vigil.cli import main
from vigil_data.dataset.dataset import Dataset, exists
from vigil_data.errors import UserError
from vigil_data.importers import manifest
from vigil_data.items import Item


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(folder / name)
    soundfile.write(folder / "s.wav", np.zeros(800, np.float32), 8000)
    (folder / "broken.png").write_bytes(b"not a picture")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command `vigil` and return its exit status."""
    monkeypatch.setattr("sys.argv", ["vigil", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    assert isinstance(left.value.code, int)
    return left.value.code


def jsonl(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_manifest_formats_are_equivalent(media: Path) -> None:
    png, wav = (media / "media" / "a.png").read_bytes(), (media / "media" / "s.wav").read_bytes()
    expected = [
        Item(
            "1",
            ('hello, "you"\nthere',),
            (png,),
            (wav,),
            {"hate": 1.0, "spam": None},
            {"split": "train", "author": "7", "created_at": datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "topic": "sport"},
        ),
        Item(
            "2",
            (),
            (png, png),
            (),
            {"hate": None, "spam": 0.25},
            {"split": "test", "author": None, "created_at": None, "topic": None},
        ),
    ]
    first = {
        "id": "1",
        "text": 'hello, "you"\nthere',
        "image": "media/a.png",
        "audio": "media/s.wav",
        "target.hate": 1,
        "target.spam": None,
    }
    first |= {"split": "train", "author": "7", "created_at": "2026-01-02T03:04:00Z", "topic": "sport"}
    second = {"id": "2", "image": ["media/a.png", "media/b.png"], "target.hate": None, "target.spam": 0.25, "split": "test"}
    second |= {"text": None, "audio": None, "author": None, "created_at": None, "topic": None}
    jsonl(media / "m.jsonl", first, second)
    cells = [
        [json.dumps(v) if isinstance(v, list) else "" if v is None else str(v) for v in (r[k] for k in first)]
        for r in (first, second)
    ]
    with (media / "m.csv").open("w", encoding="utf-8-sig", newline="") as to:
        import csv

        csv.writer(to).writerows([list(first), *cells])
    parquet = [
        {**first, "image": [png], "audio": [wav], "created_at": datetime(2026, 1, 2, 3, 4)},
        {**second, "image": [png, png]},
    ]
    pq.write_table(pa.Table.from_pylist(parquet), media / "m.parquet")
    for name in ("m.jsonl", "m.csv", "m.parquet"):
        assert manifest.check(media / name) == 2
        assert list(manifest.read(media / name)) == expected, name


def test_manifest_targets_may_be_a_mapping(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "m.jsonl", {"id": 5, "text": ["a", "b"], "targets": {"hate": 0, "spam": None, "scam": True}})
    assert manifest.check(file) == 1
    assert list(manifest.read(file)) == [Item("5", ("a", "b"), targets={"hate": 0.0, "spam": None, "scam": 1.0})]


def test_manifest_import_stores_quarantines_and_appends(
    media: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [{"id": f"t{n}", "text": "hi", "target.hate": n % 2, "split": "train"} for n in range(6)]
    rows += [{"id": "good", "image": "media/a.png", "split": "test"}, {"id": "bad", "text": "x", "image": "media/broken.png"}]
    to = media / "dataset"
    assert run(monkeypatch, "data", "import", "manifest", jsonl(media / "m.jsonl", *rows), "--to", to) == 0
    shown = capsys.readouterr().out
    assert "7 kept, 1 quarantined" in shown
    assert "3 of 6" in shown
    assert "text+image" not in shown
    dataset = Dataset(to)
    assert [row["id"] for row in dataset.quarantine().to_pylist()] == ["bad"]
    assert dataset.splits() == {"test": 1, "train": 6}
    assert np.isnan(dataset.targets(["hate"], [6])).all()

    assert run(monkeypatch, "data", "import", "manifest", jsonl(media / "n.jsonl", rows[0]), "--to", to) == 2
    assert capsys.readouterr().err == f"error: dataset {to} exists already; append to it, or name another folder\n"
    assert run(monkeypatch, "data", "import", "manifest", media / "n.jsonl", "--to", to, "--append") == 2
    assert capsys.readouterr().err == "error: item t0: the dataset already has an item with this id\n"
    more = jsonl(media / "o.jsonl", {"id": "new", "text": "x", "target.spam": 1})
    assert run(monkeypatch, "data", "import", "manifest", more, "--to", to, "--append") == 0
    assert Dataset(to).labels == ("hate", "spam")
    capsys.readouterr()

    assert run(monkeypatch, "data", "show", to) == 0
    shown = capsys.readouterr().out
    for words in ("8 items", "quarantine", "image", "(no split)", "version", "spam"):
        assert words in shown


BROKEN: list[tuple[str, str | bytes, list[str]]] = [
    (
        "m.jsonl",
        '{"id": "a", "text": "x"}\n{"id": "b", "text": "x"\n',
        ["m.jsonl:2: not JSON (Expecting ',' delimiter at column 24)"],
    ),
    ("m.jsonl", '{"text": "x"}\n\n{"id": null, "text": "x"}\n', ["m.jsonl:1: id is missing", "m.jsonl:3: id is missing"]),
    ("m.jsonl", '{"id": "a", "image": "media/none.png"}\n', ["m.jsonl:1: image media/none.png does not exist"]),
    ("m.jsonl", '{"id": "a", "audio": ["media"]}\n', ["m.jsonl:1: audio media is not a file"]),
    ("m.jsonl", '{"id": "a", "text": "x", "target.hate": 1.5}\n', ["m.jsonl:1: target.hate is 1.5, outside [0, 1]"]),
    ("m.jsonl", '{"id": "a", "text": "x", "target.hate": "yes"}\n', ["m.jsonl:1: target.hate is 'yes', not a number"]),
    (
        "m.jsonl",
        '{"id": "a", "text": "x", "target.hate": NaN}\n',
        ["m.jsonl:1: NaN is not JSON; omit an unknown value, or write null"],
    ),
    (
        "m.jsonl",
        '{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n',
        ["m.jsonl:2: id a is also at m.jsonl:1; ids must be unique"],
    ),
    ("m.jsonl", '{"id": "a", "text": "x", "id": "b"}\n', ["m.jsonl:1: key id occurs twice"]),
    ("m.jsonl", '["a", "x"]\n', ["m.jsonl:1: a row must be a JSON object, not a list"]),
    ("m.jsonl", b'{"id": "a", "text": "caf\xe9"}\n', ["m.jsonl:1: not UTF-8 (byte 25 of the line)"]),
    ("m.jsonl", '{"id": "a", "text": 5}\n', ["m.jsonl:1: text is 5, not a string or a list of strings"]),
    (
        "m.jsonl",
        '{"id": "a", "text": "x", "targets": {"hate": 1}, "target.hate": 1}\n',
        ["m.jsonl:1: the target of hate is given twice"],
    ),
    (
        "m.jsonl",
        '{"id": "a", "text": "x", "n": 1}\n{"id": "b", "text": "x", "n": "one"}\n',
        ["m.jsonl:2: column n has a string here, but a number at m.jsonl:1"],
    ),
    (
        "m.jsonl",
        '{"id": "a", "text": "x", "tags": ["a"]}\n',
        ["m.jsonl:1: column tags is ['a'], not a string, number, boolean or time"],
    ),
    (
        "m.jsonl",
        '{"id": "a", "text": "x", "created_at": "yesterday"}\n',
        ["m.jsonl:1: created_at is 'yesterday', not a time such as 2026-11-24T18:30:00Z"],
    ),
    ("m.jsonl", '{"id": "a", "txt": "x"}\n', ["m.jsonl: no row has text, image or audio; check the spelling of the columns"]),
    ("m.jsonl", "", ["m.jsonl has no rows"]),
    ("m.csv", "id,text,target.hate\na,x,1\nb,x\n", ["m.csv:3: 2 cells, but the header has 3 columns"]),
    ("m.csv", 'id,text\na,"one\ntwo"\nb,x,y\n', ["m.csv:4: 3 cells, but the header has 2 columns"]),
    ("m.csv", 'id,text\na,"never closed\nb,x\n', ["m.csv:2: not CSV (unexpected end of data)"]),
    ("m.csv", "id,text,text\na,x,y\n", ["m.csv:1: column text occurs twice in the header"]),
    ("m.csv", "id,text\n", ["m.csv has no rows"]),
    ("m.csv", b"id,text\na,caf\xe9\n", ["m.csv:2: not UTF-8"]),
    ("m.csv", "id,text\na,x\n".encode("utf-16"), ["m.csv:1: not UTF-8"]),
    (
        "m.csv",
        "id,text,target.hate\na,x,nan\n",
        ["m.csv:2: target.hate is NaN; leave it empty if it is unknown"],
    ),
    (
        "m.csv",
        "id,text,target.Hate\na,x,1\n",
        ["m.csv:2: label 'Hate' must be lower-case letters, digits and _, starting with a letter"],
    ),
    ("m.parquet", b"PAR1 and then nothing", ["m.parquet: not Parquet"]),
    ("m.xlsx", b"PK", ["m.xlsx: unknown format; a manifest's name ends in .jsonl, .csv, .parquet"]),
]


@pytest.mark.parametrize(("name", "content", "lines"), BROKEN, ids=range(len(BROKEN)))
def test_manifest_error_is_one_clear_line_and_exit_status_2(
    name: str,
    content: str | bytes,
    lines: list[str],
    media: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(media)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run(monkeypatch, "data", "import", "manifest", name, "--to", "dataset") == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == len(lines)
    assert all(got.startswith(f"error: {line}") for got, line in zip(printed, lines, strict=True)), printed
    assert not exists("dataset")


def test_manifest_reports_up_to_twenty_errors_at_once(tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "text": "x", "target.hate": 7, "image": "none.png"} for n in range(15)]
    with pytest.raises(UserError) as caught:
        manifest.check(jsonl(tmp_path / "m.jsonl", *rows))
    assert len(caught.value.lines) == 21
    assert caught.value.lines[-1] == "… and 10 more"


def test_manifest_names_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        manifest.check(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="is a folder, not a file"):
        manifest.check(tmp_path / "folder.csv")


def test_manifest_prints_names_with_markup_literally(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = jsonl(
        tmp_path / "m.jsonl",
        {"id": "[red]x[/nope]", "text": "x", "split": "[bold]s", "image": "m.jsonl"},
        {"id": "b", "text": "x", "split": "[/]"},
    )
    assert run(monkeypatch, "data", "import", "manifest", file, "--to", tmp_path / "d") == 0
    shown = capsys.readouterr().out
    assert "[red]x[/nope]" in shown
    assert "[/]" in shown
