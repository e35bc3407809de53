"""Enrichment stores what an import of the enriched items stores, once, and leaves what people entered."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from vigil.cli import build
from vigil_data.dataset import history
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.dataset.ingest import prepare_all, tables
from vigil_data.dataset.leaks import context_media
from vigil_data.enrichment.engines import EngineError, Finding, Kind
from vigil_data.enrichment.enrich import enrich
from vigil_data.enrichment.text_columns import SCHEMA, with_texts
from vigil_data.errors import Failure, MediaError, UserError
from vigil_data.items import Item, Modality


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()


PNG = png()


class Fake:
    """An engine that answers from a table, and counts what it reads."""

    def __init__(
        self,
        answers: dict[str, Finding | Exception],
        kind: Kind = "ocr",
        modality: Modality = "image",
        identity: str = "fake 1",
    ) -> None:
        self.kind, self.modality, self.identity, self.answers = kind, modality, identity, answers
        self.name = identity.partition(" ")[0]
        self.read: list[str] = []

    def __call__(self, item: Item) -> Finding:
        assert getattr(item, self.modality)
        answer = self.answers[item.id]
        if isinstance(answer, BaseException):
            raise answer
        self.read.append(item.id)
        return answer


def stored(path: Path) -> list[Item]:
    dataset = Dataset(path)
    return dataset.take(range(len(dataset)))


def texts(path: Path, role: str) -> dict[str, list[str]]:
    return {item.id: [text for index, text in enumerate(item.text) if item.role("text", index) == role] for item in stored(path)}


CONTEXT = ("context", "body")
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=6)
TIMES = st.none() | st.tuples(st.integers(0, 9), st.integers(9, 99)).map(lambda time: (time[0] / 2, float(time[1])))
ROLE = st.sampled_from(["body", "title", "context", "ocr"])


@st.composite
def findings(draw: st.DrawFn) -> tuple[Item, list[str], list[tuple[float, float]]]:
    """An item with any roles and times, or none of them, and new texts, all with times or none."""
    number = draw(st.integers(0, 3))
    roles = draw(st.none() | st.lists(ROLE, min_size=number, max_size=number))
    times = draw(st.just([]) | st.lists(TIMES, min_size=number, max_size=number))
    item = Item(
        "1",
        tuple(draw(st.lists(TEXT, min_size=number, max_size=number))),
        images := draw(st.sampled_from([(), (PNG,), (PNG, PNG)])),
        roles=({"text": tuple(roles)} if roles else {})
        | draw(st.sampled_from([{}, {"image": ("context", "body")[: len(images)]}])),
        times=tuple(times) if any(times) else (),
    )
    new = draw(st.lists(TEXT, max_size=3))
    return item, new, [(float(n), n + 0.5) for n in range(len(new))] if draw(st.booleans()) else []


def columns_of(items: list[Item]) -> dict[str, list[Any]]:
    """The columns that depend on texts, as an import makes them."""
    (table,) = tables(prepare_all(items), [], [])
    absent = [None] * len(items)
    return {name: table[name].to_pylist() if name in table.column_names else absent for name in SCHEMA.names}


@settings(deadline=None, max_examples=50)
@given(st.lists(findings(), min_size=1, max_size=5))
def test_with_texts_equals_an_import_of_the_enriched_items(drawn: list[Any]) -> None:
    columns = columns_of([item for item, _, _ in drawn])
    before = pa.table({name: pa.array(of, SCHEMA.field(name).type) for name, of in columns.items()})
    context = {number: found for number, (item, _, _) in enumerate(drawn) if (found := context_media(item))}
    changed = with_texts(
        before,
        [new for _, new, _ in drawn],
        [times for *_, times in drawn],
        "transcript",
        replaces=[False] * len(drawn),
        context_media=context,
    )
    wanted = columns_of([item.with_texts(new, "transcript", times) for item, new, times in drawn])
    assert dict(zip(SCHEMA.names, (array.to_pylist() for array in changed), strict=True)) == wanted
    # What one engine has found is removed without a trace when it finds nothing any more.
    again = pa.table(dict(zip(SCHEMA.names, changed, strict=True)))
    removed = with_texts(
        again, [[]] * len(drawn), [[]] * len(drawn), "transcript", replaces=[True] * len(drawn), context_media=context
    )
    for (item, new, _), *values in zip(drawn, *(array.to_pylist() for array in removed), strict=True):
        row = dict(zip(SCHEMA.names, values, strict=True))
        kept = Item("1", tuple(row["text"]), item.image)
        assert kept.text == item.text
        assert row["characters"] == sum(map(len, item.text))
        assert row["digests"] == columns_of([item])["digests"][0]
        if new:
            bodies = ["body"] * len(item.text)
            assert (row["text_roles"] or bodies) == [item.role("text", index) for index in range(len(item.text))]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Items a to d have a picture, c with ocr text of a person; e has none."""
    items = [
        Item("a", ("title",), (PNG,), targets={"x": 1.0}, roles={"text": ("title",)}),
        Item("b", (), (PNG, PNG), columns={"split": "test"}),
        Item("c", ("by hand",), (PNG,), roles={"text": ("ocr",)}),
        Item("d", ("plain",), (PNG,)),
        Item("e", ("no picture",)),
    ]
    write(tmp_path / "d", items)
    return tmp_path / "d"


WORDS: dict[str, Finding | Exception] = {"a": Finding(["WIN"]), "b": Finding(["one", "two"]), "d": Finding()}


def test_enrich_stores_one_version_with_provenance_and_equals_an_import(pictures: Path, tmp_path: Path) -> None:
    write(pictures, [Item("g", ("reply",), (PNG, PNG), roles={"image": ("context", "body")})], append=True)
    items = stored(pictures)
    words = {**WORDS, "g": Finding(["seen"])}
    result = enrich(pictures, Fake(words))
    assert (result.version, result.read, result.found, result.given, result.failed) == (3, 4, 3, 1, {})
    assert texts(pictures, "ocr") == {"a": ["WIN"], "b": ["one", "two"], "c": ["by hand"], "d": [], "e": [], "g": ["seen"]}
    change = history.read(pictures)[-1].change
    assert change is not None
    assert (change.operation, dict(change.counts)) == ("enrich ocr: fake 1", {"read": 4, "found": 3})
    dataset = Dataset(pictures)
    assert dataset.table(["ocr_engine"])["ocr_engine"].to_pylist() == ["fake 1", "fake 1", None, "fake 1", None, "fake 1"]
    answers = {id_: answer.texts for id_, answer in words.items() if isinstance(answer, Finding)}
    write(tmp_path / "import", [item.with_texts(answers.get(item.id, ()), "ocr") for item in items])
    imported = Dataset(tmp_path / "import")
    assert set(imported.schema.names) == set(dataset.schema.names) - {"ocr_engine"}
    names = list(imported.schema.names)
    assert dataset.table(names).to_pylist() == imported.table(names).to_pylist()
    assert texts(pictures, "body")["d"] == ["plain"]
    assert [path.name for path in pictures.iterdir() if path.name.startswith(".enriching")] == []
    assert Dataset(pictures, 1).take([0])[0].text == ("title",)


def test_enrich_reads_only_what_is_new_and_force_only_what_this_engine_read(pictures: Path) -> None:
    enrich(pictures, Fake(WORDS))
    again = Fake(WORDS)
    assert enrich(pictures, again).version == 2
    assert again.read == []
    write(pictures, [Item("f", (), (PNG,))], append=True)
    other = Fake({"f": Finding(["new"])}, identity="other 1")
    assert enrich(pictures, other).found == 1
    newer = Fake({"a": Finding(["LOSE"]), "b": Finding(), "d": Finding(["words"])}, identity="fake 2")
    result = enrich(pictures, newer, force=True)
    assert (newer.read, result.read, result.found, result.given) == (["a", "b", "d"], 3, 2, 1)
    assert texts(pictures, "ocr") == {"a": ["LOSE"], "b": [], "c": ["by hand"], "d": ["words"], "e": [], "f": ["new"]}
    assert Dataset(pictures).table(["ocr_engine"])["ocr_engine"].to_pylist() == [
        "fake 2",
        "fake 2",
        None,
        "fake 2",
        None,
        "other 1",
    ]


def test_enrich_resumes_after_a_stop_and_does_no_item_twice(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        """Stands for kill -9: nothing of the program catches it."""

    monkeypatch.setattr("vigil_data.enrichment.enrich.SAVE_ROWS", 1)
    with pytest.raises(Killed):
        enrich(pictures, Fake({**WORDS, "d": Killed()}))  # type: ignore[dict-item]
    assert Dataset(pictures).version == 1
    (folder,) = pictures.glob(".enriching-ocr-*")
    assert len(list(folder.glob("*.arrow"))) == 2
    seen: list[tuple[int, int]] = []
    second = Fake(WORDS)
    result = enrich(pictures, second, progress=lambda done, total: seen.append((done, total)))
    assert (second.read, seen, result.read) == (["d"], [(3, 3)], 3)
    assert texts(pictures, "ocr")["b"] == ["one", "two"]


def test_enrich_leaves_old_findings_alone_after_a_kill_behind_the_commit(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vigil_data.enrichment.enrich.shutil.rmtree", lambda _: None)
    enrich(pictures, Fake(WORDS))
    monkeypatch.undo()
    result = enrich(pictures, Fake(WORDS))
    assert (result.version, result.read) == (2, 0)
    assert texts(pictures, "ocr")["a"] == ["WIN"]
    assert list(pictures.glob(".enriching-*")) == []


def test_enrich_stops_at_a_failing_engine_or_skips_the_item(pictures: Path) -> None:
    answers = {**WORDS, "b": EngineError("out\nof paper"), "d": MediaError("the PNG file is truncated")}
    with pytest.raises(Failure, match=r"item b: out\\nof paper; finished items are kept: run it again, or skip .* --keep-going"):
        enrich(pictures, Fake(answers))
    result = enrich(pictures, engine := Fake(answers), keep_going=True)
    assert engine.read == []
    assert (result.read, result.failed) == (1, {"b": "out\nof paper", "d": "the PNG file is truncated"})
    last = Fake(WORDS)
    assert enrich(pictures, last).read == 2
    assert last.read == ["b", "d"]


def test_enrich_language_keeps_given_ones_and_stores_confidence(tmp_path: Path) -> None:
    items = [Item("a", ("x",)), Item("b", ("y",), columns={"language": "de"}), Item("c", (), (PNG,)), Item("d", ("z",))]
    write(tmp_path / "d", items)
    answers: dict[str, Finding | Exception] = {"a": Finding(language="fr", confidence=0.75), "d": Finding(language="und")}
    result = enrich(tmp_path / "d", Fake(answers, "language", "text"))
    assert (result.read, result.found, result.given) == (2, 1, 1)
    table = Dataset(tmp_path / "d").table(["language", "language_confidence", "language_engine"])
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("fr", 0.75, "fake 1"),
        ("de", None, None),
        (None, None, None),
        ("und", None, "fake 1"),
    ]
    assert enrich(tmp_path / "d", Fake(answers, "language", "text"), where="id = 'a'", force=True).read == 1


def test_enrich_command_reads_words_languages_and_speech(tmp_path: Path) -> None:
    pytest.importorskip("py3langid")
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(8000, np.float32), 8000, format="WAV")
    write(
        tmp_path / "d", [Item("a", ("Der Zug fährt um acht Uhr vom Bahnhof ab.",), (), (sound.getvalue(),)), Item("b", ("ok",))]
    )
    program = tmp_path / "speech"
    program.write_text('#!/bin/sh\ntest -f "$1" && printf "WEBVTT\\n\\n00:00.000 --> 00:01.000\\nall aboard\\n"\n')
    program.chmod(0o755)

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(build(), ["data", "enrich", str(tmp_path / "d"), *arguments])

    result = run("language", "--reason", "markets report")
    assert result.exit_code == 0, result.output
    assert "2 items read by py3langid" in result.output
    assert "1 with a language" in result.output
    result = run("transcript", "--command", str(program))
    assert result.exit_code == 0, result.output
    assert "1 with speech" in result.output
    item = stored(tmp_path / "d")[0]
    assert (item.text[1], item.role("text", 1), item.times) == ("all aboard", "transcript", (None, (0, 1)))
    assert item.columns["language"] == "de"
    change = history.read(tmp_path / "d")[1].change
    assert change is not None
    assert change.reason == "markets report"
    for arguments, message in (
        (("ocr", "--model", "x"), "--model: not an option of ocr"),
        (("transcript",), "name an engine: --model DIR for faster-whisper, or --command PROGRAM for any program"),
        (("transcript", "--command", "x", "--model", "y"), "name an engine: "),
        (("transcript", "--command", "x", "--languages", "de"), "--languages: not an option of --command"),
        (("transcript", "--model", "x", "--timeout", "3"), "--timeout: an option of --command"),
        (("transcript", "--model", "x", "--languages", "de,en"), "--languages de,en: a recording has one language"),
    ):
        failed = run(*arguments)
        assert isinstance(failed.exception, UserError)
        assert str(failed.exception).startswith(message)
