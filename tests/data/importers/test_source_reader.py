"""Public sets are read as described: what a set does not speak of stays unknown, and no text leaks between splits."""

import gzip
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.dataset.text_content import normalised
from vigil_data.errors import UserError
from vigil_data.importers.source_reader import SourceReader, SplitBy, text_split
from vigil_data.importers.source_schema import load_source
from vigil_data.items import Item
from vigil_data.quality.origin import Refused


class Imported(NamedTuple):
    items: list[Any]
    skipped: dict[str, int]


def read(name: str, path: Path, **options: Any) -> Imported:
    reader = SourceReader(load_source(name), path, **options)
    return Imported(list(reader.items()), dict(reader.excluded))


def csv(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_public_davidson_has_hate_and_offensive(tmp_path: Path) -> None:
    header = ",count,hate_speech,offensive_language,neither,class,tweet"
    file = csv(tmp_path / "labeled_data.csv", header, "0,3,3,0,0,0,one", "1,3,0,3,0,1,two", "2,3,0,0,3,2,three")
    items = read("davidson", tmp_path).items
    assert read("davidson", file).items == items
    assert [item.id for item in items] == ["davidson-0", "davidson-1", "davidson-2"]
    assert [item.targets for item in items] == [
        {"hate": 1.0, "offensive": None},
        {"hate": 0.0, "offensive": 1.0},
        {"hate": 0.0, "offensive": 0.0},
    ]
    assert [item.columns["davidson_class"] for item in items] == [0, 1, 2]
    assert {item.columns["source"] for item in items} == {"davidson"}


def test_public_stormfront_skips_unjudged_sentences(tmp_path: Path) -> None:
    rows = ["1_1,hate,,one", "1_2,noHate,,two", "1_3,relation,,three", "1_4,idk/skip,,four", "1_5,relation,,five"]
    imported = read("stormfront", csv(tmp_path / "s.csv", "file_id,label,sampled_split,text", *rows))
    assert [item.targets for item in imported.items] == [{"hate": 1.0}, {"hate": 0.0}]
    assert imported.skipped == {"labelled relation": 2, "labelled idk/skip": 1}


def test_public_surge_is_a_test_set(tmp_path: Path) -> None:
    file = csv(tmp_path / "toxicity_en.csv", "text,is_toxic", "one,Toxic", '"two', 'lines",Not Toxic', "one,Toxic")
    items = read("surge", tmp_path).items
    assert read("surge", file).items == items
    assert [(item.id, item.text, item.targets) for item in items] == [
        ("surge-0", ("one",), {"offensive": 1.0}),
        ("surge-1", ("two\nlines",), {"offensive": 0.0}),
        ("surge-2", ("one",), {"offensive": 1.0}),
    ]
    assert {tuple(item.columns.items()) for item in items} == {(("source", "surge"), ("split", "test"))}


def test_public_madlibs_has_identity_columns(tmp_path: Path) -> None:
    rows = [
        "respect middle aged,NOT_BAD,verb_adj",
        "i am deaf,NOT_BAD,am_hate_adj",
        "i hate african american,BAD,am_hate_adj",
        "Being middle eastern is awful.,BAD,being_adj",
        "You are a kind sikh,NOT_BAD,you_are_adj",
        "Léa is an awful african american,BAD,name_adj",
        "You are a kind coal miner,NOT_BAD,you_occupation",
        "a sentence of another kind,NOT_BAD,another",
    ]
    items = read("madlibs", csv(tmp_path / "bias_madlibs_77k.csv", "Text,Label,Template", *rows)).items
    assert [item.columns.get("identity") for item in items] == [
        "middle aged",
        "deaf",
        "african american",
        "middle eastern",
        "sikh",
        "african american",
        None,
        None,
    ]
    assert [item.targets["hate"] for item in items] == [0, 0, 1, 1, 0, 1, 0, 0]
    assert (items[3].id, items[3].columns["template"], items[3].columns["split"]) == ("madlibs-3", "being_adj", "test")


EDOS = "rewire_id,text,label_sexist,label_category,label_vector,split"


def test_public_import_skips_texts_of_another_split(tmp_path: Path) -> None:
    rows = [
        "a,Some  WORDS,sexist,none,none,train",
        "b,some words,sexist,none,none,test",
        "c,kept in training,not sexist,none,none,train",
        "d,Kept in Training,not sexist,none,none,train",
        "e,seen before,not sexist,none,none,test",
        "f,seen in test,not sexist,none,none,test",
        "g,held out,not sexist,none,none,dev",
    ]
    write(
        tmp_path / "d",
        [
            Item("old", ("Seen before ",), columns={"split": "train"}),
            Item("test", ("seen in test",), columns={"split": "test"}),
            Item("free", ("held out",)),
        ],
    )
    imported = read("edos", csv(tmp_path / "edos.csv", EDOS, *rows))
    assert write(tmp_path / "d", imported.items, append=True, on_leak="skip").skipped == 2
    dataset = Dataset(tmp_path / "d")
    assert [(item.id, item.columns["split"]) for item in dataset.take(range(3, len(dataset)))] == [
        ("edos-b", "test"),
        ("edos-c", "train"),
        ("edos-d", "train"),
        ("edos-f", "test"),
        ("edos-g", "validation"),
    ]


def test_public_import_keeps_sampling_columns(tmp_path: Path) -> None:
    header = f"{EDOS},inclusion_probability,weight"
    file = csv(tmp_path / "edos.csv", header, "a,x,sexist,none,none,train,0.25,2", "b,y,sexist,none,none,test,,1e3")
    first, second = (item.columns for item in read("edos", file).items if isinstance(item, Item))
    assert (first["inclusion_probability"], first["weight"]) == (0.25, 2.0)
    assert ("inclusion_probability" in second, second["weight"]) == (False, 1000.0)
    with pytest.raises(UserError, match=r"edos.csv:2: weight is '-1', not a positive, finite number"):
        read("edos", csv(tmp_path / "edos.csv", header, "a,x,sexist,none,none,train,1,-1"))


def test_public_import_reads_compressed_files_with_semicolons(tmp_path: Path) -> None:
    lines = "\n".join(line.replace(",", ";") for line in [EDOS, "a,x,sexist,none,none,train"])
    with gzip.open(tmp_path / "edos.csv.gz", "wt") as file:
        file.write(lines)
    assert [item.id for item in read("edos", tmp_path / "edos.csv.gz").items] == ["edos-a"]


def test_public_import_refuses_items_without_content(tmp_path: Path) -> None:
    rows = ["a,,sexist,none,none,train", "b,  ,sexist,none,none,train", "c,x,sexist,none,none,train"]
    items = read("edos", csv(tmp_path / "edos.csv", EDOS, *rows)).items
    assert [(type(item), item.id) for item in items] == [(Refused, "edos-a"), (Refused, "edos-b"), (Item, "edos-c")]
    assert [(item.place.file, item.place.row) for item in items[:2]] == [
        (str(tmp_path / "edos.csv"), 2),
        (str(tmp_path / "edos.csv"), 3),
    ]


def sound(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.zeros(80, np.float32), 8000)


def test_source_esc10_has_one_label_for_each_class_and_folds(tmp_path: Path) -> None:
    for name in ("001 - Dog bark/1-30226-A.ogg", "rain/2-87412-B.ogg"):
        sound(tmp_path / name)
    rules = [SplitBy("fold", "1", "test"), SplitBy("class", "Dog bark", "validation")]
    bark, rain = read("esc10", tmp_path, split_by=rules).items
    assert (bark.id, rain.id) == ("esc10-1-30226-A", "esc10-2-87412-B")
    assert bark.audio == ((tmp_path / "001 - Dog bark/1-30226-A.ogg").read_bytes(),)
    assert len(bark.targets) == 10
    assert [label for label, value in bark.targets.items() if value == 1] == ["dog_bark"]
    assert sum(bark.targets.values()) == sum(rain.targets.values()) == rain.targets["rain"] == 1
    assert bark.columns == {"source": "esc10", "split": "test", "class": "Dog bark", "fold": 1, "recording": "30226"}
    assert rain.columns["split"] == "train"
    assert read("esc10", tmp_path / "rain" / "2-87412-B.ogg").items[0].targets == rain.targets
    sound(tmp_path / "wind" / "3-1-A.ogg")
    with pytest.raises(UserError, match=r"wind/3-1-A\.ogg: class is 'wind', none of 001 - Dog bark"):
        read("esc10", tmp_path)


def test_source_fsdd_has_speakers_and_official_takes(tmp_path: Path) -> None:
    for name in ("7_theo_0.wav", "3_lucas_12.wav"):
        sound(tmp_path / "recordings" / name)
    three, seven = read("fsdd", tmp_path / "recordings").items
    assert (three.id, three.columns) == (
        "fsdd-3_lucas_12",
        {"source": "fsdd", "split": "train", "digit": 3, "speaker": "lucas", "take": 12},
    )
    assert (seven.columns["split"], seven.targets["seven"], sum(seven.targets.values())) == ("test", 1, 1)
    left_out = read("fsdd", tmp_path / "recordings", split_by=[SplitBy("speaker", "lucas", "test")]).items
    assert [item.columns["split"] for item in left_out] == ["test", "train"]
    with pytest.raises(UserError, match=r"--split-by voice: fsdd has no such column; it has digit, speaker, take"):
        read("fsdd", tmp_path, split_by=[SplitBy("voice", "1", "test")])


def test_source_of_audio_imports_completely(shared_data: Path) -> None:
    sounds = read("esc10", shared_data / "audio" / "esc10").items
    assert Counter(item.columns["fold"] for item in sounds) == dict.fromkeys(range(1, 6), 80)
    assert Counter(label for item in sounds for label, value in item.targets.items() if value) == dict.fromkeys(
        sounds[0].targets, 40
    )
    digits = read("fsdd", shared_data / "audio" / "fsdd").items
    assert Counter(item.columns["speaker"] for item in digits).keys() == {
        "george",
        "jackson",
        "lucas",
        "nicolas",
        "theo",
        "yweweler",
    }
    assert Counter(item.columns["split"] for item in digits) == {"train": 900, "test": 300}


def test_hashed_split_depends_only_on_the_text() -> None:
    shares = Counter(text_split(f"text number {n}") for n in range(20_000))
    assert shares["train"] == pytest.approx(16_000, rel=0.02)
    assert shares["validation"] == pytest.approx(2_000, rel=0.08)
    assert shares["test"] == pytest.approx(2_000, rel=0.08)
    assert text_split("An  EXAMPLE\n") == text_split("an example") == text_split("ａn example")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([EDOS, "a,x,perhaps,none,none,train"], "edos.csv:2: label_sexist is 'perhaps', none of sexist, not sexist"),
        ([EDOS, "a,x,sexist,none,none,later"], "edos.csv:2: split is 'later', none of train, dev, test"),
        ([EDOS, ",x,sexist,none,none,train"], "edos.csv:2: column 'rewire_id' is empty"),
        ([EDOS, "a,x,sexist"], "edos.csv:2: 3 cells, but the header has 6 columns"),
        (
            ["text,label", "x,1"],
            "is not a file of edos: it lacks the column 'rewire_id', 'label_sexist', 'label_category', 'split'",
        ),
        ([EDOS], "edos.csv: no rows"),
    ],
)
def test_public_import_refuses_a_file_of_another_set(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read("edos", csv(tmp_path / "edos.csv", *lines))
    assert len(caught.value.lines) == 1
    assert message in caught.value.lines[0]


def test_public_import_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks build_train\.csv, build_validation\.csv, build_test\.csv"):
        read("hatemoji", tmp_path)
    with pytest.raises(UserError, match=r"none\.csv does not exist"):
        read("edos", tmp_path / "none.csv")


def test_public_sets_join_with_unknown_labels(shared_data: Path, tmp_path: Path) -> None:
    folders = {"davidson": "davidson", "edos": "edos", "stormfront": "stormfront", "hatemoji": "hatemoji_build"}
    left_out = {}
    for name, folder in folders.items():
        imported = read(name, shared_data / "text" / folder)
        written = write(tmp_path, imported.items, append=name != "davidson", on_leak="skip")
        left_out[name] = {**imported.skipped, **({"leaks": written.skipped} if written.skipped else {})}
        assert written.quarantined == 0
    dataset = Dataset(tmp_path)
    assert left_out["stormfront"] == {"labelled relation": 168, "labelled idk/skip": 73}
    assert left_out["hatemoji"] == {"leaks": 2}
    assert left_out["davidson"] == left_out["edos"] == {}

    counted = {}
    for name in folders:
        targets_NL = dataset.targets(["hate", "offensive", "sexism"], dataset.rows(where=f"source = '{name}'"))
        counted[name] = [*(~np.isnan(targets_NL)).sum(0).tolist(), *(targets_NL == 1).sum(0).tolist()]
    assert counted["davidson"] == [24_783, 19_190 + 4_163, 0, 1_430, 19_190, 0]
    assert counted["edos"] == [0, 0, 20_000, 0, 0, 4_854]
    assert counted["stormfront"] == [9_507 + 1_196, 0, 0, 1_196, 0, 0]
    assert counted["hatemoji"] == [5_910, 0, 0, 2_965, 0, 0]
    assert len(dataset) == 24_783 + 20_000 + 10_703 + 5_910

    official = {split: dataset.rows(split, "source = 'edos'").size for split in ("train", "validation", "test")}
    assert official == {"train": 14_000, "validation": 2_000, "test": 4_000}
    official = {split: dataset.rows(split, "source = 'hatemoji'").size for split in ("train", "validation", "test")}
    assert official == {"train": 4_726, "validation": 591, "test": 593}
    assert dataset.rows(where="source = 'davidson' AND davidson_class <> 1").size == 1_430 + 4_163
    table = dataset.table(["text", "split"])
    splits_of: dict[str, set[str]] = {}
    for text, split in zip(table["text"].to_pylist(), table["split"].to_pylist(), strict=True):
        splits_of.setdefault(normalised(text[0]), set()).add(split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    matched = dataset.table(["matched_id"], dataset.rows(where="source = 'hatemoji'"))["matched_id"].to_pylist()
    assert len(set(matched) & set(dataset.table(["id"])["id"].to_pylist())) > 5_000


def test_public_evaluation_sets_import_completely(shared_data: Path) -> None:
    surge = read("surge", shared_data / "text" / "surge_toxicity").items
    assert Counter(item.targets["offensive"] for item in surge) == {1.0: 501, 0.0: 499}
    madlibs = read("madlibs", shared_data / "text" / "bias_madlibs").items
    assert Counter(item.targets["hate"] for item in madlibs) == {1.0: 38_282, 0.0: 38_282}
    # The data's own structure: 50 terms, each once in every sentence of the five templates that have one.
    found = Counter((item.columns["template"], item.columns.get("identity")) for item in madlibs)
    sentences = {"verb_adj": 8, "am_hate_adj": 2, "being_adj": 32, "you_are_adj": 32, "name_adj": 1440}
    terms = {term for _, term in found if term is not None}
    assert len(terms) == 50
    assert {"middle aged", "african american", "muslim", "blind", "gay"} <= terms
    assert found == {(template, term): n for template, n in sentences.items() for term in terms} | {("you_occupation", None): 864}
