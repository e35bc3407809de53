"""`vigil data duplicates`, `split`, `leaks`, `hashes`, `match` and `import --match`, as their user runs them."""

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from drawn_pictures import LONG, png

from vigil.cli import main
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.items import Item

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["vigil", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        assert isinstance(left.value.code, int)
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return run


def sentence(seed: int) -> str:
    chance = random.Random(seed)
    return " ".join("".join(chance.choices("abcdefghikmnoprstuw", k=5)) for _ in range(12))


def items(count: int = 24) -> list[Item]:
    return [
        Item(
            f"i{n}",
            (sentence(n // 2) if n % 2 else sentence(n // 2).upper(),),
            (png(n // 4),) if n % 4 in (0, 3) else (),
            targets={"spam": float(n % 3 == 0)},
            columns={"split": "train" if n % 4 else "test", "author": f"a{n % 10}"},
        )
        for n in range(count)
    ]


def test_duplicates_then_split_leaves_no_leaks(tmp_path: Path, run: Run) -> None:
    write(tmp_path / "d", items())
    status, printed, _ = run("leaks", tmp_path / "d", "--fail-over", "0.5")
    assert status == 1
    assert "6 of 6 items of test (100.00%) share content with train" in printed
    status, printed, _ = run("duplicates", tmp_path / "d", "--text-threshold", "0.9", "--dry-run", "--json")
    report = json.loads(printed)
    assert (status, report["version"], report["in_clusters"]) == (0, 1, 24)
    status, printed, _ = run("duplicates", tmp_path / "d", "--text-threshold", "0.9", "--reason", "spring cleaning")
    assert status == 0
    assert "OPPOSITE LABELS" in printed
    assert "version 2: column cluster" in printed
    names = Dataset(tmp_path / "d").table(["cluster"])["cluster"].to_pylist()
    assert len(set(names)) == 6  # four items each, joined by two texts and a picture
    status, printed, _ = run("split", tmp_path / "d", "--group", "cluster", "--fractions", "train=.5,test=.5", "--json")
    report = json.loads(printed)
    assert (status, report["groups"], report["largest_group"], report["version"]) == (0, ["cluster"], 4, 3)
    assert [part["items"] for part in report["splits"]] == [12, 12]
    status, printed, _ = run("leaks", tmp_path / "d", "--text-threshold", "0.9", "--fail-over", "0", "--json")
    assert (status, json.loads(printed)["items"]) == (0, 0)


def test_hashes_match_and_import_match(tmp_path: Path, run: Run) -> None:
    write(tmp_path / "known", [Item("k", (LONG,), (png(1),))])
    status, printed, _ = run(
        "hashes",
        tmp_path / "known",
        "--to",
        tmp_path / "l.csv",
        "--kind",
        "sha256,minhash",
        "--action",
        "quarantine",
        "--name",
        "fairs",
    )
    assert (status, printed) == (0, f"{tmp_path / 'l.csv'}: 1 minhash, 1 sha256\n")
    assert LONG not in (tmp_path / "l.csv").read_text()
    manifest = tmp_path / "m.jsonl"
    (tmp_path / "p.png").write_bytes(png(1))
    rows = [{"id": "a", "text": f"{LONG}!!"}, {"id": "b", "text": "fine"}, {"id": "c", "text": "see", "image": "p.png"}]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, printed, _ = run("import", "manifest", manifest, "--to", tmp_path / "d", "--match", tmp_path / "l.csv")
    assert status == 0
    assert "on the list l.csv: 2 quarantined and 0 flagged (column matched_lists)" in printed
    assert "matches the list fairs (minhash, similarity" in printed
    assert "matches the list fairs (sha256)" in printed
    status, _, warned = run("quarantine", "retry", tmp_path / "d")
    assert "2 items are on a list of known hashes; to store one, import it without --match" in warned
    assert Dataset(tmp_path / "d").table(["id"])["id"].to_pylist() == ["b"]
    run("import", "manifest", manifest, "--to", tmp_path / "e")
    status, printed, _ = run("match", tmp_path / "e", "--list", tmp_path / "l.csv", "--json")
    report = json.loads(printed)
    assert (report["items"], report["version"], {match["id"] for match in report["matches"]}) == (2, 1, {"a", "c"})
    assert base64.b64encode(png(1))[:40].decode() not in printed
    status, printed, _ = run("match", tmp_path / "e", "--list", tmp_path / "l.csv", "--apply")
    assert "2 of 3 items match 2 known hashes" in printed
    assert "version 2: 2 moved into quarantine, 0 flagged" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["duplicates", "D", "--modality", "smell"], "'smell' must be one of text, image, audio"),
        (["split", "D", "--fractions", "train=x"], "must be SPLIT=SHARE"),
        (["split", "D", "--fractions", "train=.5,train=.5"], "each split needs a name of its own"),
        (["split", "D", "--by", "time", "--stratify", "spam"], "keeps no labels in proportion"),
        (["split", "D", "--stratify", "spam", "--no-stratify"], "exclude each other"),
        (["split", "D", "--by", "time", "--gap", "soon"], "such as 7d, 12h or 30m"),
        (["split", "D", "--by", "cluster"], "vigil data duplicates"),
        (["leaks", "D", "--between", "train"], "must be two splits"),
        (["leaks", "D", "--between", "train,gold"], "has no split gold"),
        (["hashes", "D", "--to", "x.csv", "--kind", "crc"], "'crc' must be one of md5"),
        (["match", "D", "--list", "absent.csv"], "absent.csv cannot be read"),
    ],
)
def test_mistakes_get_one_message(tmp_path: Path, run: Run, arguments: list[str], message: str) -> None:
    write(tmp_path / "D", items(4))
    status, _, printed = run(*(tmp_path / part if part == "D" else part for part in arguments))
    assert status == 2
    assert message in printed
    assert "Traceback" not in printed
