"""A planted fault of every kind is found, with its place; what an import accepts has none."""

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import soundfile
from damaged_media import picture, png, sound
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil.cli import main
from vigil_data.dataset import history
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.importers.manifest import Manifest
from vigil_data.items import Item
from vigil_data.quality.checks.check import Report, check_dataset, check_manifest
from vigil_data.quality.checks.findings import KINDS, Findings
from vigil_data.quality.checks.media_pool import MediaLimits
from vigil_data.quality.checks.removal import move_to_quarantine

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


def found(report: Report) -> dict[tuple[str, str], list[str]]:
    return {(finding.kind, finding.reason): finding.places for finding in report.findings}


GOOD = [
    Item(
        f"good{n}",
        ("a title", "a text"),
        (picture("PNG"),),
        (sound("FLAC"),),
        {"spam": float(n % 2)},
        {"split": ("train", "test")[n // 4], "author": "ann", "weight": 2.0},
        {"text": ("title", "body")},
        ((0.0, 1.0), None),
    )
    for n in range(8)
]
LIMITS = MediaLimits(bytes=20_000, pixels=70 * 50, frames=3, seconds=0.5)


def wav(seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(round(seconds * 8_000), np.int16), 8_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


FAULTS: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    "id of another": ({"id": "good0"}, ("duplicate id", "an earlier row has this id: row 0", "good0")),
    "null id": ({"id": None}, ("schema", "the id is missing", "row {row}")),
    "empty id": ({"id": ""}, ("schema", "the id is missing", "row {row}")),
    "target above": ({"target:spam": 1.5}, ("target", "target of spam is 1.5, outside [0, 1]", "{id}")),
    "target nan": ({"target:spam": float("nan")}, ("target", "target of spam is nan, outside [0, 1]", "{id}")),
    "weight": ({"weight": -1.0}, ("schema", "weight is -1.0, not a positive, finite number", "{id}")),
    "null text": ({"text": ["a title", None]}, ("schema", "a text is null", "{id}")),
    "role": (
        {"text_roles": ["title", "headline"]},
        ("schema", "text[1]: role must be one of body, title, context, transcript, ocr, cover", "{id}"),
    ),
    "number of roles": ({"text_roles": ["title"]}, ("schema", "text has 1 roles, but 2 entries", "{id}")),
    "times": ({"text_starts": [2.0, None]}, ("schema", "text[0]: start is after end", "{id}")),
    "no content": (
        {"text": ["\u200b", " "], "image": [], "images": 0, "audio": [], "seconds": 0.0},
        ("no content", "no content: blank text, no image, no audio", "{id}"),
    ),
    "blank text": ({"text": ["a title", " "]}, ("blank text", "a blank text next to other content", "{id}")),
    "image cut": (
        {"image": [picture("PNG"), picture("PNG")[:-40]]},
        ("undecodable", "the PNG file is truncated", "{id}, image 1"),
    ),
    "second frame cut": (
        {"image": [picture("GIF", 3)[: -len(picture("GIF", 3)) // 2]]},
        ("undecodable", "the GIF file is truncated", "{id}, image 0"),
    ),
    "sound as image": (
        {"image": [sound("MP3")]},
        ("undecodable", "not an image of a supported format, or its header is truncated", "{id}, image 0"),
    ),
    "sound cut": ({"audio": [sound("FLAC")[:-700]]}, ("undecodable", "the FLAC file is damaged or truncated", "{id}, audio 0")),
    "stated pixels": (
        {"image": [png(50_000, 50_000, b"")]},
        ("bomb", "the header states too many pixels (decompression bomb)", "{id}, image 0"),
    ),
    "pixels": (
        {"image": [png(80, 60, b"")]},
        ("bomb", "an image of 80 x 60 pixels, more than max_pixels 3500", "{id}, image 0"),
    ),
    "frames": ({"image": [picture("GIF", 4)]}, ("bomb", "an image of more than 3 frames", "{id}, image 0")),
    "seconds": ({"audio": [wav(0.6)]}, ("bomb", "a WAV file of more than 0.5 seconds", "{id}, audio 0")),
    "bytes": ({"audio": [wav(1.5)]}, ("bomb", "a file of 0.024 MB, more than 0.02 MB", "{id}, audio 0")),
}
"""Fault to the columns that are changed in a good row, and kind, reason and place of the finding."""


def planted(folder: Path, names: list[str]) -> tuple[Dataset, dict[tuple[str, str], list[str]]]:
    """Make a dataset whose rows from the ninth on have faults, and return it with what a check must find."""
    write(folder, [*GOOD, *(Item(f"bad{n}", **_fields(GOOD[n % 8])) for n in range(len(names)))])
    table = folder / "items.lance"
    rows = lance.dataset(str(table)).to_table().to_pylist()
    expected: dict[tuple[str, str], list[str]] = {}
    for number, name in enumerate(names):
        changes, (kind, reason, place) = FAULTS[name]
        rows[8 + number] |= changes
        expected.setdefault((kind, reason), []).append(place.format(row=8 + number, id=f"bad{number}"))
    schema = lance.dataset(str(table)).schema
    lance.write_dataset(pa.Table.from_pylist(rows, schema), str(table), mode="overwrite")
    return Dataset(folder), expected


def _fields(item: Item) -> dict[str, Any]:
    return {name: getattr(item, name) for name in ("text", "image", "audio", "targets", "columns", "roles", "times")}


def test_check_finds_a_planted_fault_of_every_kind_and_moves_it_to_quarantine(tmp_path: Path) -> None:
    names = list(FAULTS)
    dataset, expected = planted(tmp_path, names)
    report = check_dataset(dataset, limits=LIMITS, workers=2)
    assert found(report) == expected
    assert report.rows == 8 + len(names)
    assert {kind for kind, _ in expected} == set(KINDS) - {
        "outside",
        "file",
        "timeout",
        "crash",
        "suffix",
        "label",
        "unknown tokens",
    }
    assert report.findings.errors == len(names) - 1
    assert report.findings.warnings == 1
    bad = [row for row, name in enumerate(names, 8) if name != "blank text"]
    assert sorted(report.bad) == bad

    version = move_to_quarantine(tmp_path, report, reason="before training")
    left = Dataset(tmp_path)
    assert (left.version, len(left)) == (version, 9)
    assert found(check_dataset(left, limits=LIMITS, workers=1)) == {
        ("blank text", "a blank text next to other content"): [f"bad{names.index('blank text')}"]
    }
    entry = history.read(tmp_path)[-1]
    assert entry.change is not None
    assert (entry.change.operation, entry.change.reason, entry.change.counts) == (
        "check",
        "before training",
        {"quarantined": len(bad)},
    )
    rows = left.quarantine().to_pylist()
    assert sorted(row["row"] for row in rows) == bad
    assert {row["author"] for row in rows} == {"ann"}
    assert {row["version"] for row in rows} == {report.version}
    with pytest.raises(UserError, match="has changed since version"):
        move_to_quarantine(tmp_path, report)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=6, unique=True))
def test_check_finds_exactly_the_planted_faults(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset, expected = planted(Path(folder), names)
        assert found(check_dataset(dataset, limits=LIMITS, workers=1)) == expected


media = st.sampled_from(
    [picture("PNG"), picture("GIF", 3), picture("TIFF", 2), picture("JPEG"), picture("AVIF"), picture("WEBP", 2)]
)
sounds = st.sampled_from([sound(form) for form in ("WAV", "FLAC", "OGG", "MP3", "OPUS")])
texts = st.text(max_size=12)
accepted = st.builds(
    Item,
    id=st.text(min_size=1, max_size=6, alphabet=st.characters(exclude_categories=["Cs"])),
    text=st.lists(st.text(min_size=1, max_size=9).map(lambda text: f"{text}."), min_size=1, max_size=3).map(tuple),
    image=st.lists(media, max_size=2).map(tuple),
    audio=st.lists(sounds, max_size=1).map(tuple),
    targets=st.dictionaries(st.sampled_from(["hate", "spam"]), st.floats(0, 1, width=32)),
    columns=st.fixed_dictionaries(
        {}, optional={"split": st.sampled_from(["train", "test"]), "weight": st.floats(0.5, 9), "n": st.integers(0, 9)}
    ),
)


@settings(max_examples=6, deadline=None)
@given(st.lists(accepted, max_size=6, unique_by=lambda item: item.id))
def test_check_of_what_an_import_accepted_finds_no_error(items: list[Item]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(folder, items)
        report = check_dataset(Dataset(folder), workers=1)
        assert [finding for finding in report.findings if finding.severity == "error"] == []
        assert report.media == sum(len(item.image) + len(item.audio) for item in items)


def test_check_of_a_foreign_table_names_its_columns(tmp_path: Path) -> None:
    lance.write_dataset(pa.table({"id": ["a"], "text": ["plain"], "target:spam": [1.0]}), str(tmp_path / "items.lance"))
    reasons = {reason for kind, reason in found(check_dataset(Dataset(tmp_path))) if kind == "schema"}
    assert "column image is missing" in reasons
    assert "column text has the type string, not list<item: string>" in reasons
    assert "column target:spam has the type double, not float" in reasons


def test_check_of_labels_finds_what_cannot_be_learned_or_tested(tmp_path: Path) -> None:
    def item(n: int, split: str, **targets: float | None) -> Item:
        return Item(f"{split}{n}", ("x",), targets=targets, columns={"split": split})

    items = [item(n, "train", both=n % 2, here=n % 2, always=1, rare=n % 2, never=None) for n in range(4)]
    write(tmp_path, [*items, *(item(n, "test", both=n % 2, always=1, rare=0) for n in range(3))])
    assert found(check_dataset(Dataset(tmp_path))) == {
        ("label", reason): []
        for reason in (
            "always is 1 wherever it is known (7 items); nothing can be learned",
            "here is known in train only (4 items)",
            "never is not known of any item",
            "rare is 0 wherever it is known in test (3 items)",
        )
    }


MANIFEST: list[tuple[Any, str, str]] = [
    ("{broken", "schema", "not JSON (column 2: Expecting property name enclosed in double quotes)"),
    ({"id": "good", "text": "again"}, "duplicate id", "id good is also at {file}:1; ids must be unique"),
    ({"id": "t", "text": "x", "target.spam": -1}, "target", "target.spam is -1, outside [0, 1]"),
    ({"id": "u", "image": "../secret.png"}, "outside", "image ../secret.png leads to {outer}/secret.png, outside {folder}; …"),
    ({"id": "l", "image": "link.png"}, "outside", "image link.png leads to {outer}/secret.png, outside {folder}; …"),
    ({"id": "m", "image": "none.png"}, "file", "image none.png does not exist in {folder}"),
    ({"id": "d", "audio": "folder"}, "file", "audio folder is a folder, not a file"),
    ({"id": "h", "image": "huge.png"}, "file", "image huge.png has 0.021 MB, more than 0.02 MB; …"),
    ({"id": "e", "text": " "}, "no content", "no content: blank text, no image, no audio"),
    ({"id": "c", "image": "cut.png"}, "undecodable", "the PNG file is truncated"),
    ({"id": "s", "image": ["good.png", "really.jpg"]}, "suffix", "PNG in a file called *.jpg"),
    ({"id": "w", "audio": "really.mp3"}, "suffix", "FLAC in a file called *.mp3"),
    ({"id": "b", "image": "good.png", "text": ["", "x"]}, "blank text", "a blank text next to other content"),
]


def test_check_manifest_finds_a_planted_fault_of_every_kind(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "posts"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(picture("PNG"))
    (folder / "link.png").symlink_to("../secret.png")
    files = {"good.png": picture("PNG"), "good.jpeg": picture("JPEG"), "cut.png": picture("PNG")[:-40], "huge.png": bytes(21_000)}
    for name, data in (files | {"really.jpg": picture("PNG"), "really.mp3": sound("FLAC")}).items():
        (folder / name).write_bytes(data)
    file = folder / "m.jsonl"
    rows = [{"id": "good", "text": "x", "image": ["good.png", "good.jpeg"], "target.spam": 1}, *(row for row, *_ in MANIFEST)]
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    expected = [
        (line, kind, reason.format(file=file, folder=folder, outer=tmp_path).removesuffix("…"))
        for line, (_, kind, reason) in enumerate(MANIFEST, 2)
    ]
    from vigil_data.importers.bounded_lines import Limits

    report = check_manifest(Manifest(file, limits=Limits(media=20_000), bad_rows="quarantine"), workers=2)
    got = {
        (finding.kind, finding.reason, place.split(",")[0].rpartition(":")[2])
        for finding in report.findings
        for place in finding.places
    }
    for line, kind, reason in expected:
        assert [one for one in got if one[0] == kind and one[1].startswith(reason) and one[2] == str(line)], (line, kind, reason)
    assert {kind for kind, *_ in got} == {kind for _, kind, _ in expected}
    assert report.findings.errors == 10
    # What the import refuses, the check of the manifest finds, and the other way round.
    with pytest.raises(UserError) as refused:
        Manifest(file, limits=Limits(media=20_000)).check()
    assert len(refused.value.lines) == len(
        [kind for _, kind, _ in MANIFEST if kind in ("schema", "duplicate id", "target", "outside", "file")]
    )

    assert run("data", "check", file, "--max-media-mb", 0.02) == 1
    shown = capsys.readouterr().out
    assert "10 errors, " in shown
    assert "really.jpg" not in shown
    assert "PNG in a file called *.jpg" in shown
    good = folder / "good.jsonl"
    good.write_text(json.dumps(rows[0]) + "\n")
    assert run("data", "check", good, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["errors"], printed["media"], printed["rows"]) == (0, 2, 1)


def test_check_command_moves_items_and_retry_restores_them_under_other_limits(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "d"
    write(to, [*GOOD, Item("long", audio=(wav(3),)), Item("cut", ("x",), image=(picture("PNG")[:-40],))])
    before = Dataset(to).version
    assert run("data", "check", to, "--max-seconds", 2) == 1
    shown = capsys.readouterr().out
    assert "a WAV file of more than 2 seconds" in shown
    assert "cut, image 0" in shown
    assert Dataset(to).version == before
    assert run("data", "check", to, "--max-seconds", 2, "--quarantine") == 0
    assert f"version {before + 1}: 2 items moved into quarantine" in capsys.readouterr().out
    assert run("data", "check", to) == 0
    assert run("data", "quarantine", "retry", to, "--max-seconds", 2) == 0
    assert "0 of 2 stored, 2 refused again" in capsys.readouterr().out
    assert run("data", "quarantine", "retry", to) == 0
    assert "1 of 2 stored, 1 refused again" in capsys.readouterr().out
    assert [row["id"] for row in Dataset(to).quarantine().to_pylist()] == ["cut"]
    assert Dataset(to).take([8])[0] == Item("long", audio=(wav(3),))
    assert run("data", "check", to, "--quarantine", "--version", before) == 2
    assert "--quarantine: only the newest version of a dataset" in capsys.readouterr().err


def test_findings_are_bounded() -> None:
    findings = Findings()
    for number in range(3_000):
        findings.add("schema", f"reason {number}", f"row {number}")
    listed = list(findings)
    assert len(listed) == 1_001
    assert findings.errors == 3_000
    assert (listed[0].reason, listed[0].count, len(listed[0].places)) == (
        "other: a row or column that is not as it must be",
        2_000,
        5,
    )
