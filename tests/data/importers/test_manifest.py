"""A manifest becomes the items it says, or every mistake of it is named by row and nothing is written."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vigil.cli import main
from vigil_data.dataset.dataset import Dataset, exists, write
from vigil_data.errors import UserError
from vigil_data.importers.manifest import Manifest
from vigil_data.items import Item
from vigil_data.loading.packing import Refusal


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
        assert Manifest(media / name).check() == 2
        assert list(Manifest(media / name).items()) == expected, name


def test_manifest_targets_may_be_a_mapping(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "m.jsonl", {"id": 5, "text": ["a", "b"], "targets": {"hate": 0, "spam": None, "scam": True}})
    assert Manifest(file).check() == 1
    assert list(Manifest(file).items()) == [Item("5", ("a", "b"), targets={"hate": 0.0, "spam": None, "scam": 1.0})]


def test_manifest_roles_and_times(media: Path) -> None:
    png = (media / "media" / "a.png").read_bytes()
    rows: list[dict[str, Any]] = [
        {
            "id": "1",
            "text": [
                {"role": "title", "text": "t"},
                {"text": "b"},
                {"role": "transcript", "text": "s", "start": 12.5, "end": 17},
            ],
            "image": [{"role": "cover", "path": "media/a.png"}],
            "audio": None,
        },
        {"id": "2", "text": {"role": "ocr", "text": "o"}, "image": {"path": "media/a.png"}},
        {"id": "3", "text": {"role": "context", "text": " "}, "image": {"role": None, "path": "media/a.png"}},
    ]
    expected = [
        Item(
            "1",
            ("t", "b", "s"),
            (png,),
            roles={"text": ("title", "body", "transcript"), "image": ("cover",)},
            times=(None, None, (12.5, 17.0)),
        ),
        Item("2", ("o",), (png,), roles={"text": ("ocr",), "image": ("body",)}),
        Item("3", (), (png,), roles={"image": ("body",)}),
    ]
    jsonl(media / "m.jsonl", *rows)
    lists = [{k: v if isinstance(v, list) or k in ("id", "audio") else [v] for k, v in row.items()} for row in rows]
    pq.write_table(pa.Table.from_pylist(lists), media / "m.parquet")
    for name in ("m.jsonl", "m.parquet"):
        assert Manifest(media / name).check() == 3
        assert list(Manifest(media / name).items()) == expected, name
    mixed = jsonl(media / "mixed.jsonl", {"id": "1", "text": ["plain", {"role": "title", "text": "t"}]})
    assert list(Manifest(mixed).items()) == [Item("1", ("plain", "t"), roles={"text": ("body", "title")})]
    (media / "m.csv").write_text('id,text,image\n1,"[""x""]","[{""role"": ""cover"", ""path"": ""media/a.png""}]"\n')
    assert list(Manifest(media / "m.csv").items()) == [Item("1", ('["x"]',), (png,), roles={"image": ("cover",)})]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"text": {"role": "titel", "text": "a"}}, "text[0]: role must be one of body, title, context, transcript, ocr, cover"),
        ({"text": ["b", {"rol": "title", "text": "a"}]}, "text[1]: unknown key; the keys are role, text, start, end"),
        ({"text": [{"role": "title"}]}, "text[0]: text is missing"),
        ({"text": {"text": "a", "start": 3, "end": 2.5}}, "text[0]: start is after end"),
        ({"text": {"text": "a", "start": -1, "end": 2}}, "text[0]: start and end must be seconds from 0 to 1,000,000"),
        ({"text": {"text": "a", "start": 1, "end": "2"}}, "text[0]: start and end must be seconds from 0 to 1,000,000"),
        ({"text": {"text": "a", "start": True, "end": 2}}, "text[0]: start and end must be seconds from 0 to 1,000,000"),
        ({"text": {"text": "a", "end": 2}}, "text[0]: start and end must be seconds from 0 to 1,000,000"),
        ({"image": {"path": "media/a.png", "start": 1}}, "image[0]: unknown key; the keys are role, path"),
        ({"text": {"text": 5}}, "text is {'text': 5}, not a string or a list of strings or objects"),
        ({"image": {"path": 5}}, "image is 5, not a path"),
    ],
)
def test_manifest_names_invalid_roles_and_times(media: Path, content: dict[str, Any], problem: str) -> None:
    file = jsonl(media / "m.jsonl", {"id": "1", **content})
    with pytest.raises(UserError) as caught:
        Manifest(file).check()
    assert list(caught.value.lines) == [f"{file}:1: {problem}"]


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

    repaired = jsonl(media / "r.jsonl", {**rows[-1], "image": "media/a.png"})
    assert run(monkeypatch, "data", "import", "manifest", repaired, "--to", to, "--append") == 0
    assert "removed from quarantine, as they are stored now: 1" in capsys.readouterr().out
    assert Dataset(to).quarantine().num_rows == 0


def test_manifest_import_has_options_for_delimiter_limits_and_folder(
    media: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def imported(file: Path, *options: object) -> str:
        status = run(monkeypatch, "data", "import", "manifest", file, "--to", media / "d", *options)
        printed = capsys.readouterr().err
        assert status == (2 if "error: " in printed else 0)
        shutil.rmtree(media / "d", ignore_errors=True)
        return printed

    (media / "m.csv").write_text("id|text\n1|hello, you\n")
    assert "m.csv:2: 2 cells, but the header has 1 column with the delimiter ','" in imported(media / "m.csv")
    (media / "m.csv").write_text("id|text\n1|hello\n")
    assert "the columns are id|text; is its delimiter another one? Name it with --delimiter" in imported(media / "m.csv")
    assert imported(media / "m.csv", "--delimiter", "|") == ""
    (media / "t.csv").write_text("id\ttext, or; not\n1\thello\n")
    assert "column text, or; not" not in imported(media / "t.csv", "--delimiter", "tab")
    assert imported(media / "m.csv", "--delimiter", "||") == "error: --delimiter '||': must be one character, or tab\n"
    long = jsonl(media / "l.jsonl", {"id": "1", "text": "x" * 5000, "image": "media/a.png"})
    assert imported(long) == ""
    assert "a line of 0.00505 MB, more than 0.004 MB; raise the limit with --max-line-mb" in imported(
        long, "--max-line-mb", 0.004
    )
    assert "text has 0.005 MB, more than 0.004 MB; raise the limit with --max-field-mb" in imported(long, "--max-field-mb", 0.004)
    with (media / "media" / "a.png").open("ab") as image:
        image.write(bytes(5000))
    assert "more than 0.004 MB; raise the limit with --max-media-mb" in imported(long, "--max-media-mb", 0.004)
    assert "error: --delimiter: " in imported(long, "--delimiter", ";")
    below = jsonl(media / "media" / "b.jsonl", {"id": "1", "image": "../media/b.png"}, {"id": "2", "image": "b.png"})
    assert imported(below) == ""
    outside = jsonl(media / "media" / "o.jsonl", {"id": "1", "image": "../broken.png"})
    shutil.move(media / "media" / "broken.png", media / "broken.png")
    assert "--media-root, or allow this with --allow-outside" in imported(outside)
    assert imported(outside, "--allow-outside") == ""
    assert imported(jsonl(outside, {"id": "1", "image": "broken.png"}), "--media-root", media) == ""


BROKEN: list[tuple[str, str | bytes, list[str]]] = [
    (
        "m.jsonl",
        '{"id": "a", "text": "x"}\n{"id": "b", "text": "x"\n',
        ["m.jsonl:2: not JSON (column 24: Expecting ',' delimiter)"],
    ),
    ("m.jsonl", '{"text": "x"}\n\n{"id": null, "text": "x"}\n', ["m.jsonl:1: id is missing (and in 1 more row)"]),
    ("m.jsonl", '{"id": "a", "image": "media/none.png"}\n', ["m.jsonl:1: image media/none.png does not exist"]),
    ("m.jsonl", '{"id": "a", "audio": ["media"]}\n', ["m.jsonl:1: audio media is a folder, not a file"]),
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
    ("m.jsonl", '{"id": "a", "text": 5}\n', ["m.jsonl:1: text is 5, not a string or a list of strings or objects"]),
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
    ("m.jsonl", "", ["m.jsonl: no rows"]),
    ("m.csv", "id,text,target.hate\na,x,1\nb,x\n", ["m.csv:3: 2 cells, but the header has 3 columns"]),
    ("m.csv", 'id,text\na,"one\ntwo"\nb,x,y\n', ["m.csv:4: 3 cells, but the header has 2 columns"]),
    ("m.csv", 'id,text\na,"never closed\nb,x\n', ["m.csv:2: not CSV (unexpected end of data)"]),
    ("m.csv", "id,text,text\na,x,y\n", ["m.csv:1: column 'text' occurs twice in the header"]),
    ("m.csv", "id,text\n", ["m.csv: no rows"]),
    ("m.csv", b"id,text\na,caf\xe9\n", ["m.csv:2: not UTF-8"]),
    ("m.csv", "id,text\na,x\n".encode("utf-16"), ["m.csv:1: UTF-16, not UTF-8"]),
    (
        "m.csv",
        "id,text,target.hate\na,x,nan\n",
        ["m.csv:2: target.hate is NaN; leave it empty if it is unknown"],
    ),
    (
        "m.csv",
        "id,text,target.Hate\na,x,1\n",
        ["m.csv:1: label 'Hate' must be lower-case letters, digits and _, starting with a letter"],
    ),
    ("m.parquet", b"PAR1 and then nothing", ["m.parquet: not Parquet"]),
    ("m.xlsx", b"PK", ["m.xlsx: unknown format; a name ends in .jsonl, .csv, .tsv (also with .gz or .zst) or .parquet"]),
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


def test_manifest_reports_each_error_once_up_to_twenty(tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "text": "x", "target.hate": 7, "image": f"none{n}.png"} for n in range(30)]
    with pytest.raises(UserError) as caught:
        Manifest(jsonl(tmp_path / "m.jsonl", *rows)).check()
    assert len(caught.value.lines) == 21
    assert caught.value.lines[0].endswith("target.hate is 7, outside [0, 1] (and in 29 more rows)")
    assert caught.value.lines[-1] == "… and 11 more"


def test_manifest_reports_an_error_of_the_header_once(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("name,text,target.Hate\n" + "a,x,1\n" * 7_456)
    with pytest.raises(UserError) as caught:
        Manifest(tmp_path / "m.csv").check()
    assert list(caught.value.lines) == [
        f"{tmp_path}/m.csv:1: the column id is missing; the columns are name, text, target.Hate",
        f"{tmp_path}/m.csv:1: label 'Hate' must be lower-case letters, digits and _, starting with a letter",
    ]


def test_manifest_names_what_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "loop.csv").symlink_to("other.csv")
    (tmp_path / "other.csv").symlink_to("loop.csv")
    (tmp_path / "gone.csv").symlink_to("nowhere.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    for name, why in {
        "none.csv": "does not exist",
        "none/none.csv": "does not exist",
        "folder.csv": "is a folder, not a file",
        "loop.csv": "is a loop of symbolic links",
        "gone.csv": "is a symbolic link to nowhere.csv, which does not exist",
        "pipe.csv": "is a pipe, not a file",
    }.items():
        with pytest.raises(UserError) as caught:
            Manifest(tmp_path / name).check()
        assert str(caught.value) == f"{tmp_path / name} {why}"


def test_manifest_media_stay_in_its_folder(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = media.parent / f"{media.name}-outside"
    outside.mkdir()
    shutil.copy(media / "media" / "a.png", outside / "x.png")
    (media / "media" / "link.png").symlink_to(outside / "x.png")
    (media / "media" / "out").symlink_to(outside)
    (media / "media" / "inside.png").symlink_to("../media/./a.png")
    (media / "media" / "loop.png").symlink_to("loop.png")
    os.mkfifo(media / "media" / "pipe.png")
    leading_outside = ["/etc/passwd", f"../{outside.name}/x.png", str(outside / "x.png"), "media/link.png", "media/out/x.png"]
    names = [*leading_outside, "media/loop.png", "media/pipe.png", "/dev/zero"]
    file = jsonl(media / "m.jsonl", *({"id": name, "image": name} for name in names))

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened")

    with monkeypatch.context() as patch:
        patch.setattr("os.open", opened)
        with pytest.raises(UserError) as caught:
            Manifest(file).check()
    lines = caught.value.lines
    assert len(lines) == len(names)
    assert all("outside" in line and "--allow-outside" in line for line in (*lines[:5], lines[7]))
    assert lines[5].endswith("media/loop.png is a loop of symbolic links")
    assert lines[6].endswith("media/pipe.png is a pipe, not a file")

    inside = jsonl(media / "i.jsonl", {"id": "1", "image": "media/inside.png"}, {"id": "2", "image": str(media / "media/a.png")})
    assert Manifest(inside).check() == 2
    payload = (media / "media" / "a.png").read_bytes()
    assert [item.image for item in Manifest(inside).items() if isinstance(item, Item)] == [(payload,), (payload,)]
    trusted = jsonl(media / "o.jsonl", *({"id": name, "image": name} for name in leading_outside[1:]))
    assert Manifest(trusted, allow_outside=True).check() == 4
    assert {item.image for item in Manifest(trusted, allow_outside=True).items() if isinstance(item, Item)} == {(payload,)}
    elsewhere = jsonl(media / "e.jsonl", {"id": "1", "image": "x.png"})
    assert Manifest(elsewhere, media_root=outside).check() == 1
    with pytest.raises(UserError, match=r"x\.png does not exist in "):
        Manifest(elsewhere).check()
    with pytest.raises(UserError, match=r"--media-root .*none: not a folder"):
        Manifest(elsewhere, media_root=media / "none")


def test_manifest_items_without_content_go_to_quarantine(media: Path) -> None:
    blank = ["", "  \t\n", "\u200b\ufeff", None, ["", " "], []]
    rows: list[dict[str, Any]] = [{"id": f"b{n}", "text": text} for n, text in enumerate(blank)]
    rows += [{"id": "image", "text": " ", "image": "media/a.png"}, {"id": "dot", "text": "."}, {"id": "part", "text": ["", "x"]}]
    manifest = Manifest(jsonl(media / "m.jsonl", *rows))
    assert manifest.check() == len(rows)
    items = list(manifest.items())
    assert [item.id for item in items if isinstance(item, Refusal)] == [f"b{n}" for n in range(len(blank))]
    assert [(item.id, item.text) for item in items if isinstance(item, Item)] == [
        ("image", ()),
        ("dot", (".",)),
        ("part", ("", "x")),
    ]
    written = write(media / "d", items)
    assert (written.kept, written.quarantined) == (3, len(blank))
    assert set(Dataset(media / "d").quarantine()["reason"].to_pylist()) == {"no content: blank text, no image, no audio"}


def test_manifest_import_reports_lone_surrogates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.jsonl").write_text('{"id": "a", "text": "fine \\ud83d\\ude00"}\n\n{"id": "b", "text": "cut \\ud83d"}\n')
    assert run(monkeypatch, "data", "import", "manifest", tmp_path / "m.jsonl", "--to", tmp_path / "d") == 0
    assert capsys.readouterr().err == (
        f"warning: 1 item with half a character (a lone surrogate), stored as U+FFFD: b ({tmp_path}/m.jsonl:3)\n"
    )
    assert [item.text for item in Dataset(tmp_path / "d").take([0, 1])] == [("fine \U0001f600",), ("cut \ufffd",)]


def test_manifest_import_reports_leaks_with_their_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = jsonl(
        tmp_path / "m.jsonl",
        {"id": "a", "text": "Buy  NOW", "target.spam": 1, "split": "train"},
        {"id": "b", "text": "buy now", "target.spam": 0, "split": "test"},
        {"id": "c", "text": "alone", "target.spam": 0, "split": "test"},
    )
    to = tmp_path / "d"
    assert run(monkeypatch, "data", "import", "manifest", file, "--to", to) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert warnings[0].startswith("warning: OPPOSITE LABELS: 1 content is positive in one split and negative in another")
    assert warnings[1].startswith("warning: 1 content is in more than one split, in 2 of these items")
    assert warnings[2] == f"warning: for example b ({file}:2) in test and a ({file}:1) in train; spam differs"
    assert len(Dataset(to)) == 3

    assert run(monkeypatch, "data", "import", "manifest", file, "--to", tmp_path / "r", "--leaks", "refuse") == 2
    printed = capsys.readouterr()
    assert "error: OPPOSITE LABELS" in printed.err
    assert f"b ({file}:2) in test" in printed.err
    assert not exists(tmp_path / "r")

    assert run(monkeypatch, "data", "import", "manifest", file, "--to", tmp_path / "s", "--leaks", "skip") == 0
    assert "excluded, the same content is in another split: 1" in capsys.readouterr().out
    assert [item.id for item in Dataset(tmp_path / "s").take([0, 1])] == ["b", "c"]

    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    parts = jsonl(
        tmp_path / "parts.jsonl",
        {"id": "e", "text": "shared", "split": "train", "image": "p.png"},
        {"id": "f", "text": "Shared", "split": "test"},
    )
    assert run(monkeypatch, "data", "import", "manifest", parts, "--to", tmp_path / "p", "--leaks", "skip") == 0
    assert capsys.readouterr().err == "warning: 1 text in more than one split, in items that differ otherwise\n"

    more = jsonl(tmp_path / "more.jsonl", {"id": "d", "text": "ALONE", "target.spam": 1, "split": "train"})
    assert run(monkeypatch, "data", "import", "manifest", more, "--to", to, "--append") == 0
    assert f"for example c in test and d ({more}:1) in train; spam differs" in capsys.readouterr().err


def test_manifest_sampling_columns(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("id,text,inclusion_probability,weight\na,x,0.25,10\nb,y,1,\n")
    items = [item for item in Manifest(tmp_path / "m.csv").items() if isinstance(item, Item)]
    assert [item.columns for item in items] == [
        {"inclusion_probability": 0.25, "weight": 10.0},
        {"inclusion_probability": 1.0, "weight": None},
    ]
    wrong: list[tuple[str, Any]] = [("inclusion_probability", value) for value in (0, 1.01, -0.5, "abc", True)]
    wrong += [("weight", value) for value in (0, -1, "inf", "nan", [1])]
    for name, value in wrong:
        with pytest.raises(
            UserError, match=rf"m\.jsonl:2: {name} is .*, not a (probability in \(0, 1\]|positive, finite number)"
        ):
            Manifest(jsonl(tmp_path / "m.jsonl", {"id": "a", "text": "x"}, {"id": "b", "text": "y", name: value})).check()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(
                ["id", "text", "image", "target.hate", "targets", "weight", "split", "created_at", "likes", "Bad.Name"]
            ),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
                max_leaves=4,
            ),
        ),
        max_size=4,
    )
)
def test_manifest_of_any_json_is_stored_or_refused_with_lines(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = jsonl(Path(folder) / "m.jsonl", *rows)
        lines: Sequence[str] | None = None
        try:
            Manifest(file).check()
            write(Path(folder) / "d", Manifest(file).items())
        except UserError as error:
            lines = error.lines
        assert lines is None or (lines and not any("\n" in line for line in lines))
        if lines is None:
            assert len(Dataset(Path(folder) / "d")) + Dataset(Path(folder) / "d").quarantine().num_rows == len(rows)


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


def test_manifest_reads_transcripts_of_every_format_as_timed_texts(media: Path) -> None:
    (media / "a.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:02.000\n<v Anna>well\n\n00:40.000 --> 00:41.000\nlater\n")
    (media / "b.srt").write_bytes(b"\xef\xbb\xbf1\r\n00:00:01,000 --> 00:00:02,000\r\nhello\r\n")
    (media / "c.json").write_text(json.dumps({"segments": [{"start": 0, "end": 1.5, "text": " there"}]}))
    wav = (media / "media" / "s.wav").read_bytes()
    expected = [
        Item(
            "1",
            ("body", "well", "later"),
            (),
            (wav,),
            roles={"text": ("body", "transcript", "transcript")},
            times=(None, (1, 2), (40, 41)),
        ),
        Item("2", ("hello", "there"), roles={"text": ("transcript", "transcript")}, times=((1, 2), (0, 1.5))),
        Item("3", ("alone",)),
    ]
    rows = [
        {"id": "1", "transcript": "a.vtt", "text": "body", "audio": "media/s.wav"},
        {"id": "2", "transcript": ["b.srt", "c.json"], "text": " "},
        {"id": "3", "transcript": None, "text": "alone"},
    ]
    (media / "m.csv").write_text('id,transcript,text,audio\n1,a.vtt,body,media/s.wav\n2,"[""b.srt"",""c.json""]",,\n3,,alone,\n')
    for file in (jsonl(media / "m.jsonl", *rows), media / "m.csv"):
        manifest = Manifest(file)
        assert manifest.check() == 3
        assert list(manifest.items()) == expected


def test_manifest_reports_transcripts_by_row_and_line(media: Path) -> None:
    (media / "bad.vtt").write_text("WEBVTT\n\n00:01 --> 00:99\nx\n")
    rows = [
        {"id": "1", "transcript": "bad.vtt"},
        {"id": "2", "transcript": "../secret.vtt"},
        {"id": "3", "transcript": ["gone.srt", 4]},
        {"id": "4", "transcript": {"path": "bad.vtt"}},
    ]
    with pytest.raises(UserError) as caught:
        Manifest(jsonl(media / "m.jsonl", *rows)).check()
    name, root, above = media / "m.jsonl", os.path.realpath(media), os.path.realpath(media.parent)
    fix = "move it there, name the folder of all media with --media-root, or allow this with --allow-outside"
    assert caught.value.lines == (
        f"{name}:1: transcript bad.vtt:3: 00:99 is not a time such as 00:01:02.500 (hours may be left out)",
        f"{name}:2: transcript ../secret.vtt leads to {above}/secret.vtt, outside {root}; {fix}",
        f"{name}:3: transcript gone.srt does not exist in {root}",
        f"{name}:3: transcript is 4, not a path",
        f"{name}:4: transcript is {{'path': 'bad.vtt'}}, not a path",
    )


def test_import_merges_cues_and_names_speakers_as_asked(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (media / "a.vtt").write_text(
        "WEBVTT\n\n00:01.000 --> 00:02.000\n<v Anna>well\n\n00:03.000 --> 00:04.000\n<v Ben>yes\n\n00:05.000 --> 00:06.000\nso\n"
    )
    file = jsonl(media / "m.jsonl", {"id": "1", "transcript": "a.vtt"})
    for options, texts, times in (
        ((), ("well yes so",), ((1, 6),)),
        (("--max-segment-seconds", 3), ("well yes", "so"), ((1, 4), (5, 6))),
        (("--max-segment-seconds", 0, "--speakers"), ("Anna: well", "Ben: yes", "so"), ((1, 2), (3, 4), (5, 6))),
    ):
        to = media / f"d{len(options)}"
        assert run(monkeypatch, "data", "import", "manifest", file, "--to", to, *options) == 0
        item = Dataset(to).take([0])[0]
        assert (item.text, item.times) == (texts, times)
