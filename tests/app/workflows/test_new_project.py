"""`vigil init`: a project whose recipe and policy are valid, made the same way every time."""

import json

import pytest

from vigil.workflows.new_project import ROWS, commands, create_project, example_rows, project_name
from vigil.workflows.policies import read_policy
from vigil_data.errors import Failure, UserError


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("projects") / "My Posts"
    return folder, create_project(folder)


def test_create_project_writes_these_files(project):
    folder, made = project
    assert [file.name for file in made.files] == [
        "README.md",
        "manifest.jsonl",
        "policy.yaml",
        "recipe.yaml",
        "taxonomy.yaml",
        "tokenizer.json",
    ]
    assert made.name == "my_posts"
    assert all("$" not in (folder / name).read_text() for name in ("README.md", "policy.yaml", "recipe.yaml", "taxonomy.yaml"))
    readme = (folder / "README.md").read_text()
    assert all(command in readme for command in commands("my_posts"))


def test_create_project_makes_a_valid_recipe_and_policy(project, monkeypatch):
    import vigil

    folder, _ = project
    monkeypatch.chdir(folder)
    recipe = vigil.load_recipe("recipe.yaml")
    assert recipe.name == "my_posts"
    assert recipe.taxonomy.labels == ("spam", "promotion")
    assert set(read_policy(folder / "policy.yaml").labels) == {"spam", "promotion"}
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocabulary) == recipe.model.encoders.text.config["vocab_size"]


def test_create_project_is_deterministic(project, tmp_path):
    _, made = project
    create_project(tmp_path / "My Posts")
    for file in made.files:
        assert (tmp_path / "My Posts" / file.name).read_bytes() == file.read_bytes()


def test_example_rows_are_unique_with_known_and_unknown_targets():
    rows = list(example_rows())
    assert len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == ROWS
    for split in ("train", "validation", "test"):
        for label in ("spam", "promotion"):
            targets = [row[f"target.{label}"] for row in rows if row["split"] == split]
            assert {0.0, 1.0} <= set(targets)
    # Unknown targets are of every kind of post, so that labelled posts are a random sample and the policy compiles.
    for split in ("train", "validation", "test"):
        unknown = [row for row in rows if row["target.promotion"] is None and row["split"] == split]
        assert {row["target.spam"] for row in unknown} == {0.0, 1.0}
        assert 0.03 < len(unknown) / sum(row["split"] == split for row in rows) < 0.11


def test_create_project_refuses_a_folder_that_is_not_empty(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError) as caught:
        create_project(tmp_path)
    assert caught.value.lines == (f"{tmp_path}: not an empty folder; name a new one",)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_create_project_accepts_an_empty_folder(tmp_path):
    assert create_project(str(tmp_path)).files


def test_create_project_reports_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match="cannot be written"):
        create_project(tmp_path / "file" / "project")


@pytest.mark.parametrize(
    ("folder", "name"), [("Posts 2026!", "posts_2026"), ("_x_", "x"), ("!", "project"), ("3d", "project_3d")]
)
def test_project_name_is_a_valid_name(tmp_path, folder, name):
    assert project_name(tmp_path / folder) == name


@pytest.mark.parametrize("guide", ["README.md", "docs/quickstart.md"])
def test_guides_show_the_commands_of_a_new_project(repository, guide):
    text = (repository / guide).read_text(encoding="utf-8")
    steps = [step for line in commands("my_project") for step in line.split(" && ")]
    assert [step for step in steps if step not in text] == []


def test_quickstart_shows_the_error_that_a_recipe_gives(repository, tmp_path, monkeypatch):
    import vigil

    create_project(tmp_path / "posts")
    monkeypatch.chdir(tmp_path / "posts")
    recipe = tmp_path / "posts" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("optimizer: {lr:", "optimizer: {lrr:"))
    with pytest.raises(UserError) as caught:
        vigil.load_recipe("recipe.yaml")
    assert f"error: {caught.value}" in (repository / "docs" / "quickstart.md").read_text(encoding="utf-8")
