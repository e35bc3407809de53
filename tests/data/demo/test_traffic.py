"""Simulated weeks of traffic: a function of the seed, with a change from a stated week on."""

import io

import pytest
from PIL import Image

from vigil_data.demo.scenarios import LABELS
from vigil_data.demo.traffic import outlined, past_posts, simulate_weeks, slang


def test_simulate_weeks_is_a_function_of_the_seed_and_of_each_post() -> None:
    posts = list(simulate_weeks(2, 20, 3))
    assert [post.item for post in posts] == [post.item for post in simulate_weeks(2, 20, 3)]
    assert [post.item for post in posts] != [post.item for post in simulate_weeks(2, 20, 4)]
    assert [post.week for post in posts] == [1] * 20 + [2] * 20
    times = [post.item.columns["created_at"] for post in posts]
    assert times == sorted(times)
    assert len({post.item.id for post in posts}) == 40
    assert all(set(post.truth) == set(LABELS) and not post.item.targets and not post.item.audio for post in posts)


def test_simulate_weeks_changes_words_and_pictures_from_a_week_on_but_no_truth() -> None:
    before = list(simulate_weeks(2, 60, 0, change_week=3))
    after = list(simulate_weeks(2, 60, 0, change_week=2))
    assert [post.truth for post in before] == [post.truth for post in after]
    assert [post.item for post in before[:60]] == [post.item for post in after[:60]]
    pairs = list(zip(before[60:], after[60:], strict=True))
    assert any("popper" in " ".join(map(str, post.item.text)) for _, post in pairs)
    assert all(a.item.image == b.item.image or a.item.image for a, b in pairs)
    assert sum(a.item.image != b.item.image for a, b in pairs) > 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Smoked a cigar after dinner.", "vibing with some cloudies after dinner."),
        ("Back at the casino with Sam.", "Back at the glitter room with Sam."),
        ("Carrying a dagger tonight.", "got out a tickler tonight."),
        ("Rain all week and I like it.", "Rain all week and I like it."),
    ],
)
def test_slang_replaces_the_words_of_subjects(text: str, expected: str) -> None:
    assert slang(text) == expected


def test_outlined_keeps_the_size_and_loses_the_colours() -> None:
    post = next(post for post in simulate_weeks(1, 50, 0) if post.item.image)
    picture = Image.open(io.BytesIO(post.item.image[0]))
    found = Image.open(io.BytesIO(outlined(post.item.image[0])))
    assert (found.size, found.mode) == (picture.size, "L")


def test_past_posts_have_targets_and_splits() -> None:
    posts = list(past_posts(50, 0))
    assert {post.columns["split"] for post in posts} == {"train", "validation", "test"}
    assert all(set(post.targets) == set(LABELS) and None not in post.targets.values() for post in posts)
