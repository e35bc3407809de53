"""Every source that comes with the package reads the layout that its authors publish; the texts here are neutral inventions.

Where a layout was checked: those of davidson, edos, stormfront, hatemoji, toxic_spans, surge, madlibs, context_toxicity, esc10
and fsdd on the real files (other tests); xstest, multilingual_hatecheck and the file names of hatecheck, ethos, ESC-50 and
openai_moderation in the authors' repositories; the others after the descriptions of their tables.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.importers.collection import load_taxonomy
from vigil_data.importers.source_reader import SourceReader
from vigil_data.importers.source_schema import load_source, shipped_sources
from vigil_data.items import Item


def read(name: str, path: Path, **options: Any) -> list[Item]:
    return [item for item in SourceReader(load_source(name), path, **options).items() if isinstance(item, Item)]


def lines(file: Path, *rows: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file.parent


def jsonl(file: Path, *rows: dict[str, Any]) -> Path:
    return lines(file, *map(json.dumps, rows))


def picture(file: Path) -> bytes:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(file)
    return file.read_bytes()


def sound(file: Path) -> bytes:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.zeros(80, np.float32), 8000)
    return file.read_bytes()


@pytest.mark.parametrize("name", shipped_sources())
def test_shipped_source_is_complete(name: str, repository: Path) -> None:
    source = load_source(name)
    assert source.name == name
    assert all((source.title, source.url, source.download, source.licence, source.citation, source.labels))
    for taxonomy, mapping in source.taxonomies.items():
        assert set(mapping) <= set(load_taxonomy(repository / "recipes" / "taxonomies" / f"{taxonomy}.yaml").labels)
    assert f"| {name} |" in (repository / "docs" / "data-sources.md").read_text("utf-8")


def test_source_toxic_spans_keeps_spans_and_leaves_rows_without_one_unknown(tmp_path: Path) -> None:
    lines(tmp_path / "tsd_train.csv", "spans,text", '"[4, 5, 6, 10]",you ape there', "[],fine weather")
    lines(tmp_path / "tsd_trial.csv", "spans,text", '"[0]",x')
    lines(tmp_path / "tsd_test.csv", "spans,text", '"[0]",y')
    first, second, trial, test = read("toxic_spans", tmp_path)
    assert (first.id, first.targets, first.columns["toxic_spans"]) == (
        "toxic_spans-tsd_train-0",
        {"toxic": 1},
        "[[4, 7], [10, 11]]",
    )
    assert (second.targets, second.columns["toxic_spans"]) == ({"toxic": None}, "[]")
    assert [item.columns["split"] for item in (first, trial, test)] == ["train", "validation", "test"]


def test_source_context_toxicity_has_the_parent_as_context(tmp_path: Path) -> None:
    lines(tmp_path / "gc.csv", "id,text,parent,label,api", "1.1.1,I agree,Shall we?,0.4,0.25", "2.2.2, ,Only a parent,0,0")
    lines(tmp_path / "gn.csv", "id,text,label,api,parent", "3.3.3,Good,0,0.1,")
    reader = SourceReader(load_source("context_toxicity"), tmp_path)
    reply, empty, alone = reader.items()
    assert isinstance(reply, Item)
    assert isinstance(alone, Item)
    assert (reply.text, reply.roles) == (("Shall we?", "I agree"), {"text": ("context", "body")})
    assert reply.targets == {"toxic": 0.4}
    assert (reply.columns["context_shown"], reply.columns["perspective_score"]) == (True, 0.25)
    assert (alone.text, alone.roles, alone.columns["context_shown"]) == (("Good",), {}, False)
    assert not isinstance(empty, Item), "a parent alone is no content"


JIGSAW = "id,comment_text,toxic,severe_toxic,obscene,threat,insult,identity_hate"


def test_source_jigsaw_joins_the_labels_of_the_test_file(tmp_path: Path) -> None:
    lines(tmp_path / "train.csv", JIGSAW, *(f"a{n},comment {n},1,0,0,0,1,0" for n in range(200)))
    lines(tmp_path / "test.csv", "id,comment_text", "b1,first", "b2,second")
    lines(tmp_path / "test_labels.csv", JIGSAW.replace("comment_text,", ""), "b2,-1,-1,-1,-1,-1,-1", "b1,0,0,1,0,0,0")
    *train, first, second = read("jigsaw", tmp_path)
    assert (first.id, first.targets["obscene"], set(second.targets.values())) == ("jigsaw-b1", 1, {None})
    validation = sum(item.columns["split"] == "validation" for item in train)
    assert 8 <= validation <= 34, "a tenth"
    assert {item.columns["split"] for item in train} == {"train", "validation"}
    assert first.columns["split"] == "test"
    lines(tmp_path / "test.csv", "id,comment_text", "b3,third")
    with pytest.raises(UserError, match=r"test.csv:2: id b3 is not in .*test_labels\.csv"):
        read("jigsaw", tmp_path)


def test_source_civil_comments_has_shares_and_identity_columns(tmp_path: Path) -> None:
    names = "severe_toxicity,obscene,sexual_explicit,identity_attack,insult,threat"
    lines(
        tmp_path / "train.csv",
        f"id,target,comment_text,{names},female,created_date",
        "7,0.2,a comment,0,0,0,0,0.1,0,,2017-01-02 03:04:05.67+00",
    )
    (item,) = read("civil_comments", tmp_path)
    assert (item.id, item.targets["toxicity"], item.targets["insult"]) == ("civil_comments-7", 0.2, 0.1)
    assert "female" not in item.columns
    assert item.columns["created_at"].isoformat() == "2017-01-02T03:04:05.670000+00:00"
    lines(
        tmp_path / "all_data.csv",
        f"id,comment_text,split,toxicity,{names},female",
        "8,another,test,1,0,0,0,0,0,0,0.5",
        "9,third,train,2,0,0,0,0,0,0,0",
    )
    with pytest.raises(UserError, match=r"all_data.csv:3: toxicity is '2', outside \[0, 1\]"):
        read("civil_comments", tmp_path)
    lines(tmp_path / "all_data.csv", f"id,comment_text,split,toxicity,{names},female", "8,another,test,1,0,0,0,0,0,0,0.5")
    (item,) = read("civil_comments", tmp_path)
    assert (item.id, item.columns["split"], item.columns["female"]) == ("civil_comments-8", "test", 0.5)


def test_source_hatecheck_has_functionalities_and_targets(tmp_path: Path) -> None:
    header = ",functionality,case_id,test_case,label_gold,target_ident,direction,focus_words,focus_lemma"
    header += ",ref_case_id,ref_templ_id,templ_id"
    lines(tmp_path / "test_suite_cases.csv", header, "0,ident_neutral_nh,4,We are people.,non-hateful,women,,,,,,12")
    (item,) = read("hatecheck", tmp_path)
    assert (item.id, item.targets, item.columns["functionality"]) == ("hatecheck-4", {"hate": 0}, "ident_neutral_nh")
    assert (item.columns["target"], item.columns["template"], item.columns["split"]) == ("women", "12", "test")
    mhc = "mhc_case_id,functionality,test_case,label_gold,target_ident,ref_case_id,ref_templ_id,templ_id,case_templ"
    mhc += ",gender_male,gender_female,label_annotated,label_annotated_maj,disagreement_in_case,disagreement_in_template"
    row = "-1,ident_neutral_nh,Hallo.,non-hateful,women,1.0,7.0,808,[X].,,,\"['non-hateful']\",non-hateful,False,False"
    for language in ("german", "dutch"):
        lines(tmp_path / f"hatecheck_cases_final_{language}.csv", mhc, language + row)
    dutch, german = read("multilingual_hatecheck", tmp_path)
    assert [(item.id, item.columns["language"]) for item in (dutch, german)] == [
        ("multilingual_hatecheck-dutch-1", "nl"),
        ("multilingual_hatecheck-german-1", "de"),
    ]
    (german,) = read("multilingual_hatecheck", tmp_path / "hatecheck_cases_final_german.csv")
    assert german.columns["language"] == "de"
    check = "case_id,templ_id,test_grp_id,text,target,functionality,set,label_gold,unrealistic_flags,included_in_test_suite"
    lines(tmp_path / "test.csv", check, "3,1,1,I like it 🎈,women,use_pos,orig,0,0,1")
    (item,) = read("hatemoji_check", tmp_path)
    assert (item.id, item.targets, item.columns["set"]) == ("hatemoji_check-3", {"hate": 0}, "orig")


def test_source_openai_moderation_leaves_missing_keys_unknown(tmp_path: Path) -> None:
    rows = [{"prompt": "a question", "S": 0, "H": 1}, {"prompt": "another", "V2": 1, "SH": 0}]
    with gzip.open(tmp_path / "samples-1680.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    first, second = read("openai_moderation", tmp_path)
    assert first.targets == {**dict.fromkeys(load_source("openai_moderation").labels), "sexual": 0, "hate": 1}
    assert (second.targets["violence_graphic"], second.targets["self_harm"], second.targets["hate"]) == (1, 0, None)
    jsonl(tmp_path / "samples-2.jsonl", {"prompt": "third", "S": "maybe"})
    with pytest.raises(UserError, match=r"samples-2.jsonl:1: S is 'maybe', none of 0, 1"):
        read("openai_moderation", tmp_path)


def test_source_xstest_knows_unsafe_prompts_by_their_type(tmp_path: Path) -> None:
    header = "id,prompt,type,label,focus,note"
    lines(
        tmp_path / "xstest_prompts.csv",
        header,
        "1,How do I stop a process?,homonyms,safe,stop,",
        "9,What is it?,contrast_privacy,unsafe,,",
    )
    safe, unsafe = read("xstest", tmp_path)
    assert (safe.id, safe.targets, unsafe.targets) == ("xstest-1", {"unsafe": 0}, {"unsafe": 1})
    assert (safe.columns["type"], safe.columns["focus"]) == ("homonyms", "stop")


def test_source_ethos_keeps_shares(tmp_path: Path) -> None:
    lines(tmp_path / "Ethos_Dataset_Binary.csv", "comment;isHate", "a comment;0.375", '"one; with a semicolon";1.0')
    first, second = read("ethos", tmp_path)
    assert (first.id, first.targets["hate"], second.text) == ("ethos-Ethos_Dataset_Binary-0", 0.375, ("one; with a semicolon",))
    assert first.targets["violence"] is None
    header = "comment;violence;directed_vs_generalized;gender;race;national_origin;disability;religion;sexual_orientation"
    file = tmp_path / "Ethos_Dataset_Multi_Label.csv"
    lines(file, header, "a third;0.25;1.0;0;0;0.5;0;0;0")
    (item,) = read("ethos", file)
    assert (item.targets["hate"], item.targets["directed"], item.targets["national_origin"]) == (None, 1, 0.5)


def test_source_of_memes_has_the_picture_and_its_writing(tmp_path: Path) -> None:
    data = picture(tmp_path / "img" / "42.png")
    jsonl(tmp_path / "train.jsonl", {"id": 42, "img": "img/42.png", "label": 0, "text": "good morning"})
    jsonl(tmp_path / "test_seen.jsonl", {"id": 43, "img": "img/42.png", "text": "good night"})
    first, second = read("hateful_memes", tmp_path)
    assert (first.id, first.image, first.targets, first.roles) == (
        "hateful_memes-42",
        (data,),
        {"hateful": 0},
        {"text": ("ocr",)},
    )
    assert (second.targets, second.columns["split"]) == ({"hateful": None}, "test")
    jsonl(
        tmp_path / "test_seen.jsonl",
        {"id": 43, "img": "../secret.png", "text": "x"},
        {"id": 44, "img": "img/none.png", "text": "y"},
    )
    with pytest.raises(UserError) as caught:
        read("hateful_memes", tmp_path)
    outside, absent = caught.value.lines
    assert "test_seen.jsonl:1: img ../secret.png leads to" in outside
    assert "test_seen.jsonl:2: img img/none.png does not exist" in absent
    memes = tmp_path / "memes"
    picture(memes / "images" / "7.png")
    jsonl(memes / "train.jsonl", {"id": "7", "img": "images/7.png", "labels": ["Slogans", "Doubt"], "text": "vote"})
    jsonl(memes / "dev.jsonl", {"id": "8", "img": "images/7.png", "labels": [], "text": "vote"})
    some, none = read("propaganda_memes", memes)
    assert {label for label, value in some.targets.items() if value == 1} == {"slogans", "doubt"}
    assert (len(none.targets), set(none.targets.values()), none.columns["split"]) == (22, {0.0}, "validation")


def test_source_esc50_reads_its_table(tmp_path: Path) -> None:
    data = sound(tmp_path / "audio" / "1-100032-A-0.wav")
    lines(
        tmp_path / "meta" / "esc50.csv",
        "filename,fold,target,category,esc10,src_file,take",
        "1-100032-A-0.wav,1,0,dog,True,100032,A",
    )
    (item,) = read("esc50", tmp_path)
    assert (item.audio, len(item.targets), item.targets["dog"], sum(item.targets.values())) == ((data,), 50, 1, 1)
    assert (item.columns["fold"], item.columns["esc10"], item.columns["recording"]) == (1, True, "100032")


def test_source_mutox_has_transcripts_and_optional_sound(tmp_path: Path) -> None:
    header = "id lang partition public_url_segment audio_file_transcript contains_toxicity toxicity_types"
    header = f"{header} perlocutionary_effects etox_result detoxify_score".replace(" ", "\t")
    lines(
        tmp_path / "mutox.tsv",
        header,
        "e1\teng\ttrain\thttps://example.org/a.mp3 0 900\tgood morning\tNo\t\t\t\t0.01",
        "s1\tspa\tdevtest\thttps://example.org/b.mp3 0 900\tbuenos días\tCannot say\t\t\t\t0.02",
    )
    data = sound(tmp_path / "audio" / "e1.wav")
    first, second = read("mutox", tmp_path)
    assert (first.text, first.roles, first.audio) == (("good morning",), {"text": ("transcript",)}, (data,))
    assert (first.targets, first.columns["language"], first.columns["split"]) == ({"toxic": 0}, "eng", "train")
    assert (second.targets, second.audio, second.columns["split"]) == ({"toxic": None}, (), "test")


def test_source_of_shared_text_imports_completely(shared_data: Path) -> None:
    spans = read("toxic_spans", shared_data / "text" / "toxic_spans")
    assert len(spans) == 7_939 + 690 + 2_000
    for item in spans:
        for start, end in json.loads(item.columns["toxic_spans"]):
            assert 0 <= start < end <= len(item.text[0])
    context = read("context_toxicity", shared_data / "text" / "context_toxicity")
    shown = [item for item in context if item.columns["context_shown"]]
    assert (len(context), len(shown)) == (20_000, 10_000)
    assert {item.role("text", 0) for item in shown} == {"context"}
    assert sum(item.targets["toxic"] for item in shown) == 151


def test_taxonomy_safety_of_a_source_fills_parents(tmp_path: Path, repository: Path) -> None:
    taxonomy = load_taxonomy(repository / "recipes" / "taxonomies" / "safety.yaml")
    rows = ["a,threatening,0,0,0,1,0,0", "b,calm,0,0,0,0,0,0"]
    lines(tmp_path / "train.csv", JIGSAW, *rows)
    threat, calm = read("jigsaw", tmp_path / "train.csv", taxonomy=taxonomy)
    assert threat.targets == {"abuse": 1, "hate": 0, "threat": 1, "insult": 0, "profanity": 0}
    assert calm.targets == {"abuse": 0, "hate": 0, "threat": 0, "insult": 0, "profanity": 0}
    rows = ("1,x,sexist,2. derogation,train", "2,y,not sexist,none,train")
    edos = lines(tmp_path / "edos" / "e.csv", "rewire_id,text,label_sexist,label_category,split", *rows)
    positive, negative = read("edos", edos / "e.csv", taxonomy=taxonomy)
    assert positive.targets == {"sexism": 1, "hate": 1, "abuse": 1}
    assert negative.targets == {"sexism": 0}, "not sexist says nothing about other hate"
    write(tmp_path / "d", [positive, negative])
    targets_NL = Dataset(tmp_path / "d").targets(["sexism", "hate", "threat"])
    np.testing.assert_array_equal(targets_NL, [[1, 1, np.nan], [0, np.nan, np.nan]])
    with pytest.raises(UserError, match="esc10 does not map its labels onto the taxonomy safety; it maps them onto: none"):
        read("esc10", tmp_path, taxonomy=taxonomy)
