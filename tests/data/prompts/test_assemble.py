"""Prompts: each is read along its path as a prompt written by hand, and what it shares changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_cases import PIECES, clauses, segments

from vigil_data.errors import UserError
from vigil_data.items import MODALITIES, ROLES
from vigil_data.prompts.assemble import (
    Cut,
    Question,
    assemble,
    content_room,
    kept_tokens,
    paths,
    questions_all,
    soft_tokens,
    text_tokens,
)
from vigil_data.prompts.pieces import ORDERS


def parts(pieces, of_clauses, question, batch):
    """Policy and segments (heading, tokens) of one question as lists of (id, soft, segment)."""
    policy = [(t, 0, 0) for t in pieces.policy_heading]
    for number, clause in enumerate(question.clauses):
        policy += [(t, 0, 0) for t in (*(pieces.gap if number else ()), *of_clauses[clause].ids)]
    own = []
    seen = soft = 0
    for modality in MODALITIES:
        if modality not in batch:
            continue
        item, role, tokens, ids = batch[modality]
        for s in range(len(item)):
            if item[s] == question.item:
                heading = [(t, 0, 0) for t in pieces.headings[modality][ROLES[role[s]]]]
                if ids is None:
                    body = [(0, 1 + soft + t, 1 + seen + s) for t in range(tokens[s])]
                else:
                    body = [(int(ids[s, t]), 0, 1 + seen + s) for t in range(tokens[s])]
                own.append((heading, body))
            soft += int(tokens[s]) if ids is None else 0
        seen += len(item)
    return policy, own


def read(rows, columns, row):
    return [(int(rows.input_ids[row, c]), int(rows.soft[row, c]), int(rows.segment[row, c])) for c in columns]


sizes = st.lists(st.lists(st.integers(1, 9), max_size=3), min_size=1, max_size=5)


@st.composite
def cases(draw):
    of_items = draw(sizes)
    n = len(of_items)
    batch = segments(*of_items)
    if draw(st.booleans()):
        batch |= segments(
            *draw(st.lists(st.lists(st.integers(1, 4), max_size=2), min_size=n, max_size=n)), modality="image", soft=True
        )
    if draw(st.booleans()):
        batch |= segments(
            *draw(st.lists(st.lists(st.integers(1, 4), max_size=2), min_size=n, max_size=n)), modality="audio", soft=True
        )
    of_clauses = clauses(*draw(st.lists(st.integers(1, 8), min_size=1, max_size=4)))
    asked = draw(
        st.lists(
            st.tuples(st.integers(0, n - 1), st.lists(st.integers(0, len(of_clauses) - 1), min_size=1, max_size=3, unique=True)),
            min_size=1,
            max_size=10,
        )
    )
    questions = [Question(item, tuple(policy), 7 + number) for number, (item, policy) in enumerate(asked)]
    if draw(st.booleans()):
        questions = questions_all(n, len(of_clauses))
    pieces = replace(PIECES, order=draw(st.sampled_from(ORDERS)), max_tokens=200, row_tokens=draw(st.integers(1, 300)))
    return pieces, of_clauses, questions, batch


@settings(deadline=None, max_examples=80)
@given(case=cases())
def test_assemble_reads_each_prompt_along_its_path_as_written_by_hand(case):
    pieces, of_clauses, questions, batch = case
    rows = assemble(pieces, of_clauses, questions, batch)
    total = longest = 0
    for number, (question, columns) in enumerate(zip(questions, paths(rows), strict=True)):
        policy, own = parts(pieces, of_clauses, question, batch)
        item = [(t, 0, 0) for t in pieces.content_heading]
        item += [token for heading, body in own for token in (*heading, *body)] or [(t, 0, 0) for t in pieces.empty]
        header, gap, tail = ([(t, 0, 0) for t in ids] for ids in (pieces.header, pieces.gap, pieces.question))
        expected = header + (policy + gap + item if pieces.order == "policy_first" else item + gap + policy) + tail
        row = rows.answer_row[number]
        assert read(rows, columns, row) == expected
        assert rows.position[row, columns].tolist() == list(range(len(expected)))
        assert rows.answer[number] == question.answer
        assert columns[-1] == rows.answer_column[number]
        total += len(expected)
        longest = max(longest, len(expected))
    assert len({(r, c) for r, c in zip(rows.answer_row.tolist(), rows.answer_column.tolist(), strict=True)}) == len(questions)
    assert rows.tokens <= total
    assert rows.input_ids.size <= len(questions) * longest
    assert rows.input_ids.shape[1] <= max(pieces.row_tokens, longest)
    assert rows.cut == ()
    # Every token is in the prompt of some question, and padding is seen by padding alone.
    mask = np.take_along_axis(
        np.take_along_axis(rows.sees, rows.block[:, :, None].repeat(rows.sees.shape[2], 2), 1),
        rows.block[:, None, :].repeat(rows.block.shape[1], 1),
        2,
    )
    mask &= np.tril(np.ones(mask.shape[1:], bool))
    assert mask.any(2).all()
    padding = rows.block == 0
    assert not (mask & (padding[:, :, None] != padding[:, None, :])).any()
    read_T = np.zeros(rows.block.shape, bool)
    for number, columns in enumerate(paths(rows)):
        read_T[rows.answer_row[number], columns] = True
    assert (read_T == ~padding).all()


@settings(deadline=None, max_examples=40)
@given(case=cases(), multiple=st.sampled_from([8, 64]))
def test_assemble_rounds_sizes_up_with_padding_alone(case, multiple):
    exact, rounded = (assemble(*case, multiple=m) for m in (1, multiple))
    T, B = exact.block.shape[1], exact.sees.shape[1]
    assert rounded.block.shape[1] == -(-T // multiple) * multiple
    assert rounded.sees.shape[1:] == (-(-B // multiple) * multiple,) * 2
    assert rounded.sees.sum() == exact.sees[:, :B, :B].sum() == rounded.sees[:, :B, :B].sum()
    for name in ("input_ids", "soft", "position", "block", "segment"):
        np.testing.assert_array_equal(getattr(rounded, name)[:, :T], getattr(exact, name))
        assert not getattr(rounded, name)[:, T:].any()
    for name in ("answer_row", "answer_column", "answer"):
        np.testing.assert_array_equal(getattr(rounded, name), getattr(exact, name))


def test_assemble_cuts_the_longest_segments_and_names_them():
    batch = segments([40, 3, 45], [5])
    rows = assemble(PIECES, clauses(4, 6), questions_all(2, 2), batch)
    # 64 tokens: 10 of the prompt, 6 of the longer policy, and 48 for three headings and 45 tokens.
    lengths = [len(columns) for columns in paths(rows)]
    assert lengths == [62, 64, 10 + 4 + 6, 10 + 6 + 6]
    assert rows.cut == (Cut(0, "text", 0, 40 - 21), Cut(0, "text", 2, 45 - 21))
    assert {int((rows.segment == s).sum()) for s in (1, 3)} == {2 * 21}  # two policies read the item


def test_assemble_refuses_a_policy_that_leaves_no_room():
    with pytest.raises(
        UserError, match="the policy of label_1 has 40 tokens and the rest of the prompt 10: of max_tokens 64, 14 are"
    ):
        assemble(PIECES, clauses(4, 40), questions_all(1, 2), segments([1]))
    with pytest.raises(UserError, match="the policy of label_1 has 40 tokens"):
        content_room(PIECES, clauses(4, 40))
    assert content_room(PIECES, clauses(4, 38)) == 16


@settings(deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 30)), min_size=1, max_size=8),
    room=st.integers(5, 120),
)
def test_kept_tokens_cuts_to_one_level_and_uses_the_room(pairs, room):
    headings, tokens = ([pair[i] for pair in pairs] for i in (0, 1))
    kept = kept_tokens(headings, tokens, room)
    used = sum(k + h for k, h in zip(kept, headings, strict=True) if k)
    assert used <= room
    assert all(0 <= k <= t for k, t in zip(kept, tokens, strict=True))
    n = sum(k > 0 for k in kept)
    assert all(kept[:n])  # those left out are the last ones
    cut = [k for k, t in zip(kept[:n], tokens[:n], strict=True) if k < t]
    if cut:
        assert max(kept) - min(cut) <= 1
        assert used == room
    if n < len(kept):
        assert sum(headings[: n + 1]) + n + 1 > room
    elif sum(headings) + sum(tokens) <= room:
        assert kept == tokens


def test_text_tokens_counts_the_mask_and_soft_tokens_are_as_many_for_each():
    ids = np.arange(6).reshape(2, 3)
    texts = text_tokens(np.array([0, 0]), np.array([0, 1]), ids, np.array([[1, 1, 0], [1, 1, 1]]))
    assert texts.tokens.tolist() == [2, 3]
    assert soft_tokens(np.array([0, 2]), np.array([0, 0]), 4).tokens.tolist() == [4, 4]
