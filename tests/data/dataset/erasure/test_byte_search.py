"""Every occurrence of a pattern is found, also across the parts in which a file is read, and words only as whole words."""

import re
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.dataset.erasure import byte_search
from vigil_data.dataset.erasure.byte_search import MIN_BYTES, Pattern, search_files

few_bytes = st.lists(st.sampled_from([b"a", b"b", b"-", b" ", b"\0"]), max_size=400).map(b"".join)
patterns = st.builds(Pattern, st.lists(st.sampled_from([b"a", b"b"]), min_size=6, max_size=9).map(b"".join), st.booleans())


@settings(max_examples=60, deadline=None)
@given(few_bytes, st.lists(patterns, min_size=1, max_size=6), st.integers(1, 64), st.data())
def test_search_files_finds_what_a_regular_expression_finds(
    content: bytes, wanted: list[Pattern], chunk: int, data: st.DataObject
) -> None:
    for pattern in data.draw(st.lists(st.sampled_from(wanted), max_size=3)):
        at = data.draw(st.integers(0, len(content)))
        content = content[:at] + pattern.literal + content[at:]
    truth = {
        p
        for p in wanted
        if re.search((b"(?<![\\w-])%s(?![\\w-])" if p.word else b"%s") % re.escape(p.literal), content, re.ASCII)
    }
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(byte_search, "CHUNK_BYTES", chunk):
        file = Path(folder) / "f"
        file.write_bytes(content)
        assert search_files([file], wanted) == ({file: truth} if truth else {})


def test_search_files_refuses_a_pattern_that_is_in_any_file_by_chance(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too short"):
        search_files([tmp_path], [Pattern(b"x" * (MIN_BYTES - 1))])
