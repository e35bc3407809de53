"""Known hashes: exact and near matches, quarantine and flags at an import, and lists that are wrong."""

import hashlib
from pathlib import Path

import pytest
from drawn_pictures import LONG, png

from vigil_data.dataset import history
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_data.quality.hash_lists import HEADER, Limits, Screen, apply_matches, hashes, match_dataset, read_list

ITEMS = [
    Item("text", (f"  {LONG.upper()} ",)),
    Item("edited", (f"{LONG}, \U0001f525 and cheese",)),
    Item("image", ("hello",), (png(9), png(1))),
    Item("resized", (), (png(1, 120),)),
    Item("context", (LONG, "no"), roles={"text": ("context", "body")}),
    Item("other", ("nothing of this kind is on any list at all",), (png(2),)),
]


def written(path: Path, *rows: tuple[str, ...]) -> Path:
    path.write_text("".join(",".join(row) + "\n" for row in (HEADER, *rows)))
    return path


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """A list of one text and one picture, made from a dataset."""
    write(tmp_path / "known", [Item("k", (LONG,), (png(1),))])
    kinds = ("md5", "sha256", "text", "minhash", "pdq", "phash")
    rows = list(hashes(Dataset(tmp_path / "known"), kinds, "fairs", "flag"))
    assert [kind for kind, *_ in rows] == ["text", "minhash", "md5", "sha256", "pdq", "phash"]
    return written(tmp_path / "known.csv", *rows)


def test_match_dataset_finds_exact_and_near_content(tmp_path: Path, known: Path) -> None:
    write(tmp_path / "d", ITEMS)
    found = match_dataset(Dataset(tmp_path / "d"), read_list(known))
    kinds = {id_: {(match.kind, match.place) for match in matches} for id_, matches in found.items()}
    assert kinds == {
        "text": {("text", 0), ("minhash", 0)},
        "edited": {("minhash", 0)},
        "image": {("md5", 1), ("sha256", 1), ("pdq", 1), ("phash", 1)},
        "resized": {("pdq", 0), ("phash", 0)},
    }
    assert all(LONG not in match.reason and match.list_name == "fairs" for of in found.values() for match in of)
    near = next(match for match in found["edited"])
    assert near.reason == f"matches the list fairs (minhash, similarity {near.score:.2f})"
    exact = match_dataset(Dataset(tmp_path / "d"), read_list(known, Limits(0, 0, 1.0)))
    assert set(exact) == {"text", "image", "resized"}  # pHash does not change with the size


def test_screened_items_are_quarantined_or_flagged(tmp_path: Path, known: Path) -> None:
    rows = [tuple(line.split(",")) for line in known.read_text().splitlines()[1:]]
    both = written(tmp_path / "both.csv", *rows, ("sha256", hashlib.sha256(png(1)).hexdigest(), "banned pictures", "quarantine"))
    result = write(tmp_path / "d", ITEMS, screen=Screen(read_list(both)))
    assert (result.kept, result.quarantined, result.screened) == (5, 1, {"flag": 3, "quarantine": 1})
    dataset = Dataset(tmp_path / "d")
    (refused,) = dataset.quarantine().to_pylist()
    assert (refused["id"], refused["modality"], refused["index"]) == ("image", "image", 1)
    assert refused["reason"] == "matches the list banned pictures (sha256)"
    marked = {row["id"]: row["matched_lists"] for row in dataset.table(["id", "matched_lists"]).to_pylist()}
    assert marked == {"text": "fairs", "edited": "fairs", "resized": "fairs", "context": None, "other": None}


def test_act_flags_and_quarantines_stored_items(tmp_path: Path, known: Path) -> None:
    write(tmp_path / "d", ITEMS)
    rows = [tuple(line.split(",")) for line in known.read_text().splitlines()[1:]]
    banned = read_list(written(tmp_path / "b.csv", *rows, ("md5", hashlib.md5(png(1)).hexdigest(), "banned", "quarantine")))
    dataset = Dataset(tmp_path / "d")
    version = apply_matches(dataset, match_dataset(dataset, banned), "a new list")
    left = Dataset(tmp_path / "d", version).table(["id", "matched_lists"]).to_pylist()
    assert {row["id"]: row["matched_lists"] for row in left} == {
        "text": "fairs",
        "edited": "fairs",
        "resized": "fairs",
        "context": None,
        "other": None,
    }
    (refused,) = dataset.quarantine().to_pylist()
    assert (refused["id"], refused["index"], refused["reason"]) == ("image", 1, "matches the list banned (md5)")
    changes = [entry.change for entry in history.read(tmp_path / "d")[-2:]]
    assert [(change.operation, change.reason, dict(change.counts)) for change in changes if change] == [
        ("match", "a new list", {"flagged": 3}),
        ("match", "a new list", {"quarantined": 1}),
    ]
    assert apply_matches(Dataset(tmp_path / "d"), {}) == version


def test_read_list_names_every_wrong_line(tmp_path: Path) -> None:
    path = written(
        tmp_path / "l.csv",
        ("crc", "00", "l", "flag"),
        ("md5", "00", "l", "flag"),
        ("md5", "0" * 32, "l", "delete"),
        ("MD5", "A" * 32, "l", "flag"),
        ("md5", "0" * 32, "", "flag"),
    )
    with pytest.raises(UserError) as raised:
        read_list(path)
    assert [line.removeprefix(str(path)) for line in raised.value.lines] == [
        ":2: kind crc: must be one of md5, sha256, text, minhash, pdq, phash",
        ":3: the value of a md5 must be 32 hexadecimal digits",
        ":4: action delete: must be quarantine or flag",
        ":6: the list needs a name without commas",
    ]
    path.write_text("value,kind\n")
    with pytest.raises(UserError, match=r"l\.csv:1: the columns must be kind,value,list,action"):
        read_list(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_list(tmp_path / "absent.csv")


def test_read_list_with_pdq_needs_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "l.csv", ("pdq", "0" * 64, "l", "flag"))
    assert len(read_list(path)) == 1
    monkeypatch.setattr("vigil_data.quality.hash_lists.installed_hash", lambda: "phash")
    with pytest.raises(UserError, match=r"vigil\[pdq\]"):
        read_list(path)
