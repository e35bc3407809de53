"""When an erasure returns, the bytes of the items are nowhere on disk, and what was not erased is unchanged."""

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
import soundfile
from PIL import Image

from vigil_data.dataset import token_cache
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.dataset.erasure import erase as erase_module
from vigil_data.dataset.erasure.erase import erase, resume
from vigil_data.dataset.erasure.ledger import Ledger
from vigil_data.dataset.erasure.selection import Selection, plan_erasure
from vigil_data.dataset.history import Change
from vigil_data.dataset.history import read as read_history
from vigil_data.dataset.revision import write_columns
from vigil_data.dataset.writer_lock import JOURNAL
from vigil_data.errors import Failure, UserError
from vigil_data.items import Item
from vigil_data.loading.packing import Refusal

ID, TEXT, LATER = "customer-7f3a91c2", "Zq8vXw2kLm9 was here", "Kp4tYr7nBs1 came later"


def png(seed: int) -> bytes:
    to = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 24, 3), np.uint8)).save(to, "PNG")
    return to.getvalue()


def wav(seed: int) -> bytes:
    to = io.BytesIO()
    soundfile.write(to, np.random.default_rng(seed).normal(0, 0.1, 800).astype(np.float32), 8000, format="WAV")
    return to.getvalue()


def posts(count: int, prefix: str = "post", **columns: object) -> list[Item]:
    return [
        Item(f"{prefix}-{n}", (f"{prefix} number {n}",), (png(n),), (), {"spam": n % 2}, {"split": "train", **columns})
        for n in range(count)
    ]


def planted(id_: str = ID, **columns: object) -> Item:
    return Item(id_, (TEXT,), (png(1000),), (wav(1000),), {"spam": 1.0}, {"split": "test", "author": "eve", **columns})


PLANTED_BYTES = (ID.encode(), TEXT.encode(), png(1000)[100:160], wav(1000)[300:360])


def holding(folder: Path, *wanted: bytes) -> set[str]:
    """Every file below a folder that has any of some bytes."""
    files = [Path(top) / name for top, _, names in os.walk(folder) for name in names]
    return {str(file.relative_to(folder)) for file in files if any(part in file.read_bytes() for part in wanted)}


def erase_ids(folder: Path, *ids: str, copies: bool = False) -> dict:
    return erase(plan_erasure(folder, Selection(ids=frozenset(ids)), copies=copies), Change("erase", "a request"))


def contents(folder: Path) -> dict[str, Item]:
    dataset = Dataset(folder)
    return {item.id: item for item in dataset.take(range(len(dataset)))}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three imports; the planted item is in the second."""
    folder = tmp_path_factory.mktemp("imported") / "dataset"
    write(folder, posts(5))
    write(folder, [*posts(4, "more"), planted()], append=True)
    write(folder, posts(3, "last"), append=True)
    return folder


@pytest.fixture
def folder(imported: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(imported, tmp_path / "dataset"))


def test_erase_removes_every_byte_of_a_row_and_keeps_the_others(folder: Path) -> None:
    before = contents(folder)
    assert all(holding(folder, part) for part in PLANTED_BYTES), "what is looked for is found before"
    certificate = erase_ids(folder, ID)
    assert holding(folder, *PLANTED_BYTES) == set()
    assert contents(folder) == {id_: item for id_, item in before.items() if id_ != ID}
    assert certificate["items"]["erased"] == 1
    assert certificate["items"]["by_split"] == {"test": 1}
    assert certificate["versions"]["with_items"].keys() <= set(map(str, certificate["versions"]["before"]))
    assert certificate["versions"]["after"] == [Dataset(folder).version]
    assert certificate["search"]["patterns"] == 4
    assert json.loads(next(folder.glob("certificates/certificate-*.json")).read_text()) == json.loads(json.dumps(certificate))
    assert not (folder / JOURNAL).exists()


def under_a_tag(folder: Path) -> None:
    lance.dataset(str(folder / "items.lance")).tags.create("gold", 2)


def deleted_before(folder: Path) -> None:
    lance.dataset(str(folder / "items.lance")).delete(f"id = '{ID}'")


def deleted_under_a_tag(folder: Path) -> None:
    under_a_tag(folder)
    deleted_before(folder)


def with_later_columns(folder: Path) -> None:
    """Columns of the row that were set, changed and dropped in later versions."""
    write_columns(folder, pa.table({"id": [ID], "author": [LATER], "note": [f"{LATER} too"]}), Change("enrich"))
    write_columns(folder, pa.table({"id": [ID], "author": ["ann"], "note": [f"{LATER} again"]}), Change("enrich"))
    lance.dataset(str(folder / "items.lance")).drop_columns(["note"])


def indexed(folder: Path) -> None:
    table = lance.dataset(str(folder / "items.lance"))
    table.create_scalar_index("id", "BTREE")
    table.create_scalar_index("split", "BITMAP")


def in_quarantine(folder: Path) -> None:
    deleted_before(folder)
    write(folder, [Refusal(ID, "image", 0, "cannot be decoded")], append=True)
    write(folder, [Refusal("other", "image", 0, "cannot be decoded")], append=True)


def in_the_token_cache(folder: Path) -> None:
    entry = token_cache.open_entry(folder, "text", {"version": 3})
    token_cache.create_entry(entry)
    (entry.path / "tokens.safetensors").write_bytes(TEXT.encode())


def in_leftovers(folder: Path) -> None:
    """What killed writers leave: a spool, a partial file, an enrichment, a data file that was not committed."""
    for name in (".incoming-x", ".enriching-ocr"):
        (folder / name).mkdir()
        (folder / name / "0.arrow").write_bytes(TEXT.encode())
    (folder / ".history.0a0b0c0d.partial.jsonl").write_bytes(TEXT.encode())
    (folder / "items.lance" / "data" / "orphan.lance").write_bytes(TEXT.encode())


def in_another_table(folder: Path) -> None:
    lance.write_dataset(pa.table({"id": [ID, "post-1"], "reviewer": [LATER, "ann"]}), str(folder / "reviews.lance"))


@pytest.mark.parametrize(
    "plant",
    [
        under_a_tag,
        deleted_before,
        deleted_under_a_tag,
        with_later_columns,
        indexed,
        in_quarantine,
        in_the_token_cache,
        in_leftovers,
        in_another_table,
    ],
)
def test_erase_reaches_every_place(folder: Path, plant: Callable[[Path], None]) -> None:
    plant(folder)
    assert all(holding(folder, part) for part in PLANTED_BYTES)
    erase_ids(folder, ID)
    assert holding(folder, *PLANTED_BYTES, LATER.encode()) == set()
    assert len(Dataset(folder)) == 12
    table = lance.dataset(str(folder / "items.lance"))
    assert ID not in table.to_table(columns=["id"])["id"].to_pylist()
    assert table.tags.list() == {}


def test_erase_keeps_the_tags_of_the_newest_version_and_rebuilds_indices(folder: Path) -> None:
    under_a_tag(folder)
    indexed(folder)
    table = lance.dataset(str(folder / "items.lance"))
    table.tags.create("current", table.version)
    certificate = erase_ids(folder, ID)
    done = certificate["places"]["items.lance"]
    assert (done["moved_tags"], done["removed_tags"], done["dropped_indices"]) == (("current",), ("gold",), ())
    table = lance.dataset(str(folder / "items.lance"))
    assert table.tags.list()["current"]["version"] == table.version
    assert {index.name: index.num_rows_indexed for index in table.describe_indices()} == {"id_idx": 12, "split_idx": 12}
    assert table.count_rows("id = 'last-2'") == 1


def test_erase_of_a_quarantined_item_leaves_the_versions_of_the_dataset(folder: Path) -> None:
    write(folder, [Refusal("broken-77", "image", 0, "cannot be decoded")], append=True)
    versions = Dataset(folder).versions()
    certificate = erase_ids(folder, "broken-77")
    assert Dataset(folder).versions() == versions
    assert Dataset(folder).quarantine().num_rows == 0
    assert holding(folder, b"broken-77") == set()
    assert certificate["items"] | {"hashes": 0} == {
        "erased": 1,
        "by_split": {},
        "quarantined": 1,
        "copies": 0,
        "kept_by_legal_hold": 0,
        "hashes": 0,
    }


def test_erase_finds_an_item_by_its_newest_version(folder: Path) -> None:
    table = lance.dataset(str(folder / "items.lance"))
    table.update({"author": "'eve'"}, where="id = 'post-1'")
    table.update({"author": "'ann'"}, where=f"id = '{ID}'")
    table.delete("id = 'post-2'")
    plan = plan_erasure(folder, Selection(author="eve"))
    assert [item.id for item in plan.items] == ["post-1"]
    # an item that only older versions have is found there
    found = plan_erasure(folder, Selection(where="id IN ('post-2', 'post-3')")).items
    assert [(item.id, item.first, item.last) for item in found] == [
        ("post-2", 1, table.version - 1),
        ("post-3", 1, table.version),
    ]


def test_erase_by_age_and_author_reaches_the_quarantine(tmp_path: Path) -> None:
    old, new = datetime(2020, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    write(tmp_path, [*posts(2, "old", created_at=old), *posts(2, "new", created_at=new), *posts(1, "undated")])
    plan = plan_erasure(tmp_path, Selection(before=new - timedelta(days=90)), held={"old-1"})
    assert ([item.id for item in plan.items], plan.held, plan.undated) == (["old-0"], 1, 1)
    assert plan_erasure(tmp_path, Selection(author="o'brien")).items == ()
    with pytest.raises(UserError, match="invalid condition 'nothing = 1'"):
        plan_erasure(tmp_path, Selection(where="nothing = 1"))


def test_erase_removes_exact_copies_only_if_asked(folder: Path) -> None:
    write(folder, [planted("a-copy-of-it"), Item("other-text", ("different",), (png(1000),), ())], append=True)
    assert [item.id for item in plan_erasure(folder, Selection(ids=frozenset({ID}))).items] == [ID]
    certificate = erase_ids(folder, ID, copies=True)
    assert certificate["items"]["copies"] == 1
    assert holding(folder, ID.encode(), TEXT.encode(), b"a-copy-of-it") == set()
    assert "other-text" in contents(folder)
    assert certificate["search"]["in_other_items"] == 1, "the picture that another item has, too"


def test_erase_removes_what_replies_have_of_an_erased_message(tmp_path: Path) -> None:
    """Its text in their context, and its id in the columns that refer to it; what is left is what an import would store."""
    others = ("another message before", "a reply of my own")
    thread = {"thread": ID, "split": "train"}
    roles = {"text": ("context", "context", "body")}
    only = Item("reply-2", (TEXT, "ha"), (png(3),), roles={"text": ("context", "body")}, columns={**thread, "parent_id": ID})
    both = Item("reply-1", (TEXT, *others), targets={"spam": 1.0}, roles=roles, columns={**thread, "parent_id": ID})
    stays = Item("reply-3", ("not related", "mine"), roles={"text": ("context", "body")}, columns={"thread": "x"})
    write(tmp_path, [planted(), both, only])
    write(tmp_path, [stays, Item("other", (TEXT, "own words"))], append=True)
    certificate = erase_ids(tmp_path, ID)
    stored = contents(tmp_path)
    pseudonym = stored["reply-1"].columns["thread"]
    assert pseudonym == f"erased-{Ledger(tmp_path).hash_id(ID)[:16]}"
    columns = {"thread": pseudonym, "parent_id": pseudonym, "split": "train"}
    expected = [
        replace(both, text=others, roles={"text": ("context", "body")}, columns=columns),
        replace(only, text=("ha",), roles={}, columns=columns),
        stays,
    ]
    assert [stored[item.id] for item in expected] == expected
    assert stored["other"].text == (TEXT, "own words"), "a text of its own is kept"
    place = certificate["places"]["items.lance"]
    assert (place["quotations"], place["references"]) == (2, 4)
    assert holding(tmp_path, ID.encode()) == set()
    assert certificate["search"]["in_other_items"] == 1
    write(tmp_path / "again", expected)
    facts = ["id", "digests", "characters", "text_roles"]
    rows = {row["id"]: row for row in Dataset(tmp_path).table(facts).to_pylist()}
    assert [rows[item.id] for item in expected] == Dataset(tmp_path / "again").table(facts).to_pylist()


def test_write_refuses_an_erased_item_by_id_and_by_content(folder: Path) -> None:
    erase_ids(folder, ID)
    today = datetime.now(UTC).date().isoformat()
    other_content = Item(ID, ("quite another text",))
    written = write(folder, [planted("new-id"), other_content, Refusal(ID, "image", 0, "broken"), *posts(1, "new")], append=True)
    assert (written.kept, written.quarantined, written.erased) == (1, 0, {today: 3})
    assert write(folder, [planted()], append=True, allow_erased=True).kept == 1
    assert ID in contents(folder)


def test_ledger_holds_no_id_and_no_content_and_differs_between_datasets(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "second", [planted()])
    lines = []
    for path in (folder, tmp_path / "second"):
        erase_ids(path, ID)
        lines.append([json.loads(line) for line in (path / "erasures.jsonl").read_text().splitlines()])
    assert all(len(of) == 2 and of[1].keys() == {"erasure", "when", "id", "contents"} for of in lines)
    assert lines[0][1]["id"] != lines[1][1]["id"]
    assert lines[0][1]["contents"] != lines[1][1]["contents"]


def test_ledger_survives_a_line_that_a_crash_cut_off_and_refuses_other_damage(folder: Path) -> None:
    erase_ids(folder, ID)
    file = folder / "erasures.jsonl"
    file.write_bytes(file.read_bytes() + b'{"erasure": "2026')
    assert Ledger(folder).erased_on(ID)
    erase_ids(folder, "post-1")
    assert len(Ledger(folder)) == 2
    file.write_text(file.read_text().replace('"id"', '"ID"', 1))
    with pytest.raises(UserError, match=r"erasures.jsonl:2: not an entry of a ledger of erasures; restore"):
        write(folder, posts(1, "new"), append=True)


def test_erase_keeps_the_history_without_the_ids(folder: Path) -> None:
    change = Change("enrich", f"as {ID} asked", command=f"vigil data x --id={ID} --note '{ID} and post-1'")
    write_columns(folder, pa.table({"id": [ID], "author": ["ann"]}), change)
    erase_ids(folder, ID)
    entries = read_history(folder)
    assert [entry.change and entry.change.operation for entry in entries] == ["import", "import", "import", "enrich", "erase"]
    assert [entry.readable for entry in entries] == [False, False, False, False, True]
    hidden = entries[3].change
    assert (hidden.reason, hidden.command) == (
        "as [erased] asked",
        "vigil data x --id=[erased] --note '[erased] and post-1'",
    )
    assert entries[4].change.counts == {"erased": 1}


def test_erase_is_idempotent_and_names_what_is_absent(folder: Path) -> None:
    erase_ids(folder, ID)
    version = Dataset(folder).version
    plan = plan_erasure(folder, Selection(ids=frozenset({ID, "nobody"})))
    assert (plan.items, plan.absent, list(plan.erased_before)) == ((), ("nobody",), [ID])
    assert Dataset(folder).version == version
    assert resume(folder) is None


def test_erase_refuses_a_dataset_that_changed_since_the_plan(folder: Path) -> None:
    plan = plan_erasure(folder, Selection(ids=frozenset({ID})))
    write(folder, posts(1, "new"), append=True)
    with pytest.raises(UserError, match="has changed since the items were selected, so nothing was erased"):
        erase(plan, Change("erase"))
    assert not (folder / JOURNAL).exists()
    assert ID in contents(folder)


def test_erase_fails_while_a_file_still_holds_the_content(folder: Path) -> None:
    (folder / "notes.txt").write_text(f"see {ID}: {TEXT}")
    with pytest.raises(Failure, match=r"notes.txt: holds erased ids or contents \(2\); remove the file, then run .* --resume"):
        erase_ids(folder, ID)
    assert ID not in contents(folder)
    with pytest.raises(UserError, match="an erasure was interrupted"):
        write(folder, posts(1, "new"), append=True)
    (folder / "notes.txt").unlink()
    assert resume(folder)["search"]["found"] == 0
    write(folder, posts(1, "new"), append=True)


def test_erase_resumes_after_a_crash_before_any_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash at each step in turn: the dataset stays readable, and the erasure is finished by resume."""

    class Crash(BaseException):
        pass

    steps = [(erase_module, name) for name in ("erase_places", "_search", "write_json", "sync")]
    write(folder, [Refusal("broken-77", "image", 0, "cannot be decoded")], append=True)
    everything = contents(folder)
    crashed = []
    for module, name in steps:
        victim = f"last-{len(crashed)}" if len(crashed) < 3 else ID

        def crash(*_: object, **__: object) -> None:
            raise Crash

        with monkeypatch.context() as patch:
            patch.setattr(module, name, crash)
            with pytest.raises(Crash):
                erase_ids(folder, victim)
        readable = contents(folder)
        expected = {id_: item for id_, item in everything.items() if id_ not in crashed}
        assert readable in (expected, {id_: item for id_, item in expected.items() if id_ != victim})
        if name != "write_json":  # the journal itself was not written, so nothing began
            if name != "sync":
                assert resume(folder) is not None
        else:
            erase_ids(folder, victim)
        crashed.append(victim)
        assert contents(folder) == {id_: item for id_, item in everything.items() if id_ not in crashed}
        assert holding(folder, victim.encode()) == set()
