"""`vigil data erase` and `retention` as their user runs them: what they print, ask and refuse."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vigil import cli
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.dataset.history import read
from vigil_data.items import Item

Vigil = Callable[..., tuple[int, str, str]]


@pytest.fixture
def vigil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Vigil:
    """A function that runs the command in a folder with a dataset, and returns status, output and errors."""
    monkeypatch.chdir(tmp_path)
    items = [
        Item(f"post-{n:04}", (f"text {n}",), columns={"split": "train", "author": "ann" if n < 2 else "bob"}) for n in range(4)
    ]
    write("posts", items)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vigil", "data", *arguments])
        with pytest.raises(SystemExit) as status:
            cli.main()
        out, err = capsys.readouterr()
        return int(status.value.code or 0), out, err

    return run


def test_erase_shows_asks_and_erases(vigil: Vigil) -> None:
    status, out, err = vigil("erase", "posts", "--author", "ann")
    assert (status, len(Dataset("posts"))) == (2, 4)
    assert "posts version 1: 2 items to erase" in out
    assert "version 1 will be replaced by one new version" in out
    assert "nothing was erased: there is no terminal to ask on; add --yes" in err
    status, out, err = vigil("erase", "posts", "--author=ann", "--reason", "request 7", "--yes")
    assert (status, err) == (0, "")
    assert "erased 2 items; posts is at version" in out
    assert "4 ids and contents: none is left" in out
    assert "certificate: posts/certificates/certificate-2" in out
    assert [item.id for item in Dataset("posts").take([0, 1])] == ["post-0002", "post-0003"]
    change = read("posts")[-1].change
    assert change is not None
    assert (change.operation, change.reason) == ("erase", "request 7")
    assert change.command == "vigil data erase posts '--author=***' --reason 'request 7' --yes"
    status, out, _ = vigil("erase", "posts", "--id", "post-0001")
    assert (status, "post-0001: was erased on 2" in out, "nothing to erase" in out) == (0, True, True)
    Path("again.jsonl").write_text(
        '{"id": "post-0001", "text": "new"}\n{"id": "x", "text": "text 0"}\n{"id": "y", "text": "fine"}\n'
    )
    assert "refused, erased on 2" in vigil("import", "manifest", "again.jsonl", "--to", "posts", "--append")[1]
    assert len(Dataset("posts")) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what to erase: --id, --ids-file, --author, --older-than or --where"),
        (["--id", "a", "--author", "b"], "--id and --author: name one of them"),
        (["--id", "nobody\n", "--yes"], "dataset posts has no item nobody\\n; nothing was erased"),
        (["--older-than", "soon"], "'soon' is not an age; write days, weeks or years"),
        (["--ids-file", "absent.txt"], "absent.txt: cannot be read: No such file or directory"),
        (["--author", "ann", "--runs", "absent"], "absent: no such folder"),
        (["--resume", "--id", "a"], "--resume finishes the interrupted erasure; leave --id out"),
    ],
)
def test_erase_refuses_what_it_cannot_do(vigil: Vigil, arguments: list[str], message: str) -> None:
    status, _, err = vigil("erase", "posts", *arguments)
    assert (status, message in err) == (2, True), err
    assert len(Dataset("posts")) == 4


def test_retention_reports_and_erases_only_with_apply(vigil: Vigil) -> None:
    Path("policy.yaml").write_text("name: p\nrules:\n  - {name: of ann, where: \"author = 'ann'\"}\n")
    status, out, _ = vigil("retention", "posts", "policy.yaml")
    assert (status, "nothing was erased; add --apply" in out, len(Dataset("posts"))) == (0, True, 4)
    status, out, _ = vigil("retention", "posts", "policy.yaml", "--apply", "--yes")
    assert (status, "erased 2 items" in out, len(Dataset("posts"))) == (0, True, 2)
    change = read("posts")[-1].change
    assert change is not None
    assert (change.operation, change.reason) == ("retention", "retention policy p: of ann")
    Path("policy.yaml").write_text("name: p\nrules:\n  - {name: a, where: nothing = 1}\n")
    status, _, err = vigil("retention", "posts", "policy.yaml")
    assert (status, "policy.yaml: rule a: dataset posts: invalid condition" in err) == (2, True)
