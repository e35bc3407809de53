"""The quarantine keeps what an import refused, with its place, until it is good or dropped."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vigil.cli import main
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.importers.manifest import Manifest
from vigil_data.items import Item
from vigil_data.quality import quarantine
from vigil_data.quality.origin import Origin, Place, Refused
from vigil_data.quality.retry import retry

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["vigil", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        assert isinstance(left.value.code, int)
        return left.value.code

    return run


def jsonl(file: Path, *rows: Any) -> Path:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return file


def png(file: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(file)


BAD: list[Any] = [
    {"id": "good", "text": "x", "author": "ann", "created_at": "2026-01-02T03:04:05Z"},
    "{not JSON",
    {"id": "range", "text": "x", "target.spam": 7, "author": "bob", "created_at": "2026-02-03T00:00:00Z"},
    {"id": "good", "text": "the id is taken"},
    {"id": "absent", "image": "none.png"},
    {"id": "kind", "text": "x", "n": "one"},
    {"id": "late", "text": "x", "n": 1},
    {"id": "broken", "image": "broken.png", "author": "eve"},
    {"id": "blank", "text": " "},
    {"text": "no id"},
]


def planted(folder: Path) -> Path:
    (folder / "broken.png").write_bytes(b"no picture")
    return jsonl(folder / "m.jsonl", *BAD)


def test_bad_rows_go_to_quarantine_with_reason_and_place(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    file, to = planted(tmp_path), tmp_path / "d"
    assert run("data", "import", "manifest", file, "--to", to) == 2
    assert not to.exists()
    capsys.readouterr()
    assert run("data", "import", "manifest", file, "--to", to, "--bad-rows", "quarantine") == 0
    assert "2 kept, 8 quarantined" in capsys.readouterr().out
    assert Dataset(to).table(["id"])["id"].to_pylist() == ["good", "kind"]
    rows = {row["row"]: row for row in Dataset(to).quarantine().to_pylist()}
    assert {line: (row["id"], row["modality"], row["reason"]) for line, row in rows.items()} == {
        2: ("", "row", "not JSON (column 2: Expecting property name enclosed in double quotes)"),
        3: ("range", "row", "target.spam is 7, outside [0, 1]"),
        4: ("good", "row", f"id good is also at {file}:1; ids must be unique"),
        5: ("absent", "row", f"image none.png does not exist in {tmp_path}"),
        7: ("late", "row", f"column n has a number here, but a string at {file}:6"),
        8: ("broken", "image", "not an image of a supported format, or its header is truncated"),
        9: ("blank", "text", "no content: blank text, no image, no audio"),
        10: ("", "row", "id is missing"),
    }
    assert {row["file"] for row in rows.values()} == {str(file)}
    assert {row["command"] for row in rows.values()} == {f"vigil data import manifest {file} --to {to} --bad-rows quarantine"}
    assert {row["version"] for row in rows.values()} == {0}
    assert (rows[3]["author"], rows[3]["created_at"]) == ("bob", datetime(2026, 2, 3, tzinfo=UTC))
    assert (rows[8]["author"], rows[8]["created_at"]) == ("eve", None)
    assert all((datetime.now(UTC) - row["quarantined_at"]).total_seconds() < 60 for row in rows.values())


def test_bad_rows_of_every_row_or_of_the_header_fail(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "d"
    for name, content, line in (
        ("a.jsonl", '{"id": "a", "text": 5}\n', "a.jsonl:1: text is 5, not a string"),
        ("b.csv", "id,text,a.b\n1,x,y\n2,x,y\n", "b.csv:1: a column cannot be called 'a.b'"),
        ("c.csv", 'id,text\na,x\nb,"never closed\n', "c.csv:3: not CSV (unexpected end of data)"),
    ):
        (tmp_path / name).write_text(content)
        assert run("data", "import", "manifest", tmp_path / name, "--to", to, "--bad-rows", "quarantine") == 2
        assert line in capsys.readouterr().err
        assert not to.exists()


def test_retry_stores_what_is_good_now_as_one_version(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    file, to = planted(tmp_path), tmp_path / "d"
    run("data", "import", "manifest", file, "--to", to, "--bad-rows", "quarantine")
    before = Dataset(to).version
    repaired = list(BAD)
    repaired[2] = {**BAD[2], "target.spam": 0.5}
    repaired[3] = {"id": "other", "text": "the id is free"}
    repaired[7] = {"id": "moved", "text": "the broken picture is gone"}
    repaired[8] = {"id": "blank", "text": "now it has a text"}
    jsonl(file, *repaired)
    png(tmp_path / "none.png")
    capsys.readouterr()
    assert run("data", "quarantine", "retry", to) == 0
    printed = capsys.readouterr()
    assert "4 of 8 stored, 3 refused again, 1 no longer in their source" in printed.out
    assert f"warning: no longer in its source: broken ({file}:8)" in printed.err
    assert sorted(Dataset(to).table(["id"])["id"].to_pylist()) == ["absent", "blank", "good", "kind", "other", "range"]
    assert [v["rows"] for v in Dataset(to).versions() if v["version"] > before][-1] == 6
    left = {row["row"]: row["id"] for row in Dataset(to).quarantine().to_pylist()}
    assert left == {2: "", 7: "late", 8: "broken", 10: ""}
    # Selected by reason, and the command names what it did.
    jsonl(file, *repaired[:-1], {"id": "named", "text": "x"})
    assert run("data", "quarantine", "retry", to, "--reason", "ID IS MISSING") == 0
    assert "1 of 1 stored, 0 refused again" in capsys.readouterr().out
    assert run("data", "quarantine", "retry", to, "--id", "unheard of") == 2
    file.unlink()
    assert run("data", "quarantine", "retry", to) == 0
    printed = capsys.readouterr()
    assert "0 of 3 stored" in printed.out
    assert f"{file} does not exist" in printed.err
    assert Dataset(to).quarantine().num_rows == 3


def test_retry_removes_what_an_import_stored_before_it_was_killed(tmp_path: Path) -> None:
    write(tmp_path, [Item("a", ("x",))])
    place = Place(Manifest(tmp_path / "none.jsonl").origin, str(tmp_path / "none.jsonl"), 1)
    quarantine.put(tmp_path, [Refused("a", "image", 0, "cut", place=place), Refused("a", "row", 0, "id taken", place=place)])
    result = retry(tmp_path, quarantine.read(tmp_path))
    assert quarantine.read(tmp_path)["reason"].to_pylist() == ["id taken"]
    assert (result.stored, result.unreadable) == (0, [f"{tmp_path}/none.jsonl does not exist"])


def test_retry_of_a_public_dataset_finds_the_item_by_its_id(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    file, to = tmp_path / "toxicity_en.csv", tmp_path / "d"
    file.write_text("text,is_toxic\none,Toxic\n\u200b,Toxic\n")
    assert run("data", "import", "surge", file, "--to", to) == 0
    (row,) = Dataset(to).quarantine().to_pylist()
    assert (row["id"], row["modality"]) == ("surge-1", "text")
    file.write_text("text,is_toxic\none,Toxic\ntwo,Toxic\n")
    assert run("data", "quarantine", "retry", to) == 0
    assert Dataset(to).take([0, 1])[1].text == ("two",)
    assert Dataset(to).quarantine().num_rows == 0


def test_list_and_drop_select_by_reason_modality_and_id(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    file, to = planted(tmp_path), tmp_path / "d"
    run("data", "import", "manifest", file, "--to", to, "--bad-rows", "quarantine")
    capsys.readouterr()
    assert run("data", "quarantine", "list", to) == 0
    shown = capsys.readouterr().out
    assert "image 0" in shown
    assert "m.jsonl:8" in shown
    assert run("data", "quarantine", "list", to, "--modality", "image", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["id"], row["row"], row["author"]) == ("broken", 8, "eve")
    assert run("data", "quarantine", "list", to, "--reason", "nothing like it") == 0
    assert "nothing is in quarantine that meets these conditions" in capsys.readouterr().out
    assert run("data", "quarantine", "list", to, "--modality", "video") == 2
    assert run("data", "quarantine", "drop", to) == 2
    assert "name what to drop: --id, --modality or --reason, or --all" in capsys.readouterr().err
    assert run("data", "quarantine", "drop", to, "--id", "broken", "--id", "late") == 0
    assert "2 removed from quarantine, 6 left" in capsys.readouterr().out
    assert run("data", "quarantine", "drop", to, "--all") == 0
    assert Dataset(to).quarantine().num_rows == 0
    assert len(Dataset(to)) == 2


def test_put_keeps_one_row_of_an_item_and_each_bad_row(tmp_path: Path) -> None:
    write(tmp_path, [Item("a", ("x",))])
    origin = Origin("manifest", "/m.jsonl")
    row = [Refused("p", "row", 0, "twice", place=Place(origin, "/m.jsonl", n)) for n in (1, 2)]
    quarantine.put(tmp_path, row)
    quarantine.put(tmp_path, [row[0]])
    assert quarantine.read(tmp_path)["row"].to_pylist() == [2, 1]
    quarantine.put(tmp_path, [Refused("p", "image", 0, "cut", place=Place(origin, "/m.jsonl", 5))])
    assert quarantine.read(tmp_path)["reason"].to_pylist() == ["cut"]


def test_origin_and_place_survive_json_and_odd_names() -> None:
    origin = Origin("manifest", "/a b/ü\n.jsonl", {"delimiter": None})
    assert Origin.from_json(origin.to_json()) == origin
    assert Place.at(origin, "/a:1/b: row 3.csv:17") == Place(origin, "/a:1/b: row 3.csv", 17)
    assert Place.at(origin, "/a/b.parquet: row 12") == Place(origin, "/a/b.parquet", 12)
    assert Place.at(origin, None) == Place(origin, origin.path, None)
