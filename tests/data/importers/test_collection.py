"""Collections import several sources as one version, and report the mistakes of all of them at once."""

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from vigil.cli import main
from vigil.workflows.shipped_recipes import RECIPES, taxonomy_file
from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_data.importers.collection import load_taxonomy, open_import, open_source
from vigil_data.items import Item

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process; return its exit status."""

    def command(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["vigil", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return command


def collection(root: Path, *sources: str, head: str = "taxonomy: safety") -> Path:
    file = root / "set.yaml"
    file.write_text(f"name: both\n{head}\nsources:\n" + "".join(f"  - {source}\n" for source in sources))
    return file


def two(root: Path) -> Path:
    (root / "edos.csv").write_text("rewire_id,text,label_sexist,label_category,label_vector,split\na,one,sexist,x,y,train\n")
    (root / "s.csv").write_text("file_id,label,sampled_split,text\n1,noHate,,two\n2,relation,,three\n3,noHate,,\u200b\n")
    return collection(root, "{source: edos, path: edos.csv}", "{source: stormfront, path: s.csv}")


def test_import_of_a_collection_is_one_version_with_one_taxonomy(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("data", "import", two(tmp_path), tmp_path, "--to", tmp_path / "d") == 0
    printed = capsys.readouterr().out
    assert "d version 1: 2 kept, 1 quarantined" in printed
    assert "excluded, labelled relation: 1 (stormfront)" in printed
    dataset = Dataset(tmp_path / "d")
    assert [(item.id, dict(item.targets)) for item in dataset.take([0, 1])] == [
        ("edos-a", {"abuse": 1, "hate": 1, "sexism": 1}),
        ("stormfront-1", {"hate": 0}),
    ]
    (row,) = dataset.quarantine().to_pylist()
    assert (row["id"], row["row"]) == ("stormfront-3", 4)
    (tmp_path / "s.csv").write_text("file_id,label,sampled_split,text\n3,hate,,now it has a text\n")
    assert run("data", "quarantine", "retry", tmp_path / "d") == 0
    assert Dataset(tmp_path / "d").take([2])[0].targets == {"abuse": 1, "hate": 1}, "retried with its taxonomy"


def test_collection_reports_the_mistakes_of_all_sources(tmp_path: Path) -> None:
    file = collection(
        tmp_path,
        "{source: edso, path: x}",
        "{source: esc10, path: y}",
        "{source: edos, path: .}",
        '{source: edos, path: ".", split_by: [x]}',
    )
    with pytest.raises(UserError) as caught:
        open_import(str(file), tmp_path, taxonomy_file)
    assert [line.removeprefix(f"{file}: ")[:60] for line in caught.value.lines] == [
        "sources[0]: there is no source edso (did you mean edos?); `v",
        "sources[1]: esc10 does not map its labels onto the taxonomy ",
        f"sources[2]: {tmp_path} lacks edos_labelled_aggregated.csv, which edos needs"[:60],
        "sources[3]: --split-by x: must be COLUMN=VALUE:SPLIT, such a",
    ]
    file.write_text("name: both\n\nsources: []\n")
    with pytest.raises(UserError, match=r"set.yaml:3: sources: must not be empty"):
        open_import(str(file), tmp_path, taxonomy_file)
    with pytest.raises(UserError, match="is a collection; write split_by at one of its sources"):
        open_import(str(two(tmp_path)), tmp_path, taxonomy_file, split_by=["fold=1:test"])
    with pytest.raises(UserError, match=r"no taxonomy saftey comes with Vigil \(did you mean safety\?\)"):
        open_import("edos", tmp_path, taxonomy_file, taxonomy="saftey")


def test_collection_may_name_sources_and_taxonomies_next_to_it(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text("taxonomy: {name: tiny, heads: {h: {labels: {bad: {}}}}}\n")
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ntitle: t\nfiles: [{name: m.csv}]\ntext: [{column: t}]\ntargets: {x: {column: v, share: true}}\n"
        "columns: {who: {column: who}}\ntaxonomies: {tiny: {bad: [x]}}\n"
    )
    (tmp_path / "m.csv").write_text("t,v,who\na,0.5,eve\nb,1,bob\n")
    file = collection(tmp_path, '{source: mine.yaml, path: m.csv, split_by: ["who=eve:test"]}', head="taxonomy: tiny.yaml")
    (reader,) = open_import(str(file), tmp_path, taxonomy_file)
    assert [(item.targets, item.columns["split"]) for item in reader.items()] == [({"bad": 0.5}, "test"), ({"bad": 1}, "train")]


def test_import_commands_print_sources_and_refuse_unknown_ones(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "sources") == 0
    listed = capsys.readouterr().out
    assert "davidson" in listed
    assert "labeled_data.csv" in listed
    assert run("data", "sources", "fsdd") == 0
    assert capsys.readouterr().out.splitlines()[1] == "name: fsdd"
    assert run("data", "import", "edso", "x", "--to", "y") == 2
    assert "there is no source edso (did you mean edos?)" in capsys.readouterr().err
    assert run("data", "import", "x.csv", "--to", "y") == 2
    assert "name the kind before the file: vigil data import manifest x.csv" in capsys.readouterr().err


def test_shared_text_is_read_by_one_collection(shared_data: Path) -> None:
    readers = open_import(str(RECIPES / "collections" / "shared-text.yaml"), shared_data, taxonomy_file)
    items = [item for reader in readers for item in reader.items() if isinstance(item, Item)]
    assert len(items) == 24_783 + 20_000 + 10_703 + 5_912 + 10_629 + 20_000 + 1_000 + 76_564
    assert len({item.id for item in items}) == len(items)
    labels = set(load_taxonomy(taxonomy_file("safety", Path())).labels)
    for item in items:
        assert set(item.targets) <= labels
        assert item.targets.get("hate") != 1 or item.targets["abuse"] == 1


def test_open_source_reads_flat_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "edos_labelled_aggregated.csv"
    with file.open("w") as out:
        out.write("rewire_id,text,label_sexist,label_category,label_vector,split\n")
        for n in range(60_000):
            out.write(f"{n},{'word ' * 60}{n},sexist,none,none,train\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in open_source("edos", file).items()) == 60_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8_000, "kilobytes; the file has 19 MB"
