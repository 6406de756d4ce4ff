"""Lists of bytes as servers write them become the bytes of tokens, or are refused."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpusgen.teachers.openai_spelling import spell
from corpusgen.types import ByteStrings

COMPACT, WIDE = (",", ":"), (", ", ": ")


def raws(*lists: Any, separators: tuple[str, str] = COMPACT) -> list[msgspec.Raw]:
    """Return each list as JSON; `...` stands for a key that is absent."""
    return [
        msgspec.Raw() if each is ... else msgspec.Raw(json.dumps(each, separators=separators))
        for each in lists
    ]


def unread() -> Any:
    raise AssertionError("the texts are not needed")
    yield


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=5), min_size=1, max_size=12), st.sampled_from([COMPACT, WIDE]))
def test_lists_of_bytes_are_read_without_the_texts(
    spellings: list[bytes], separators: tuple[str, str]
) -> None:
    found = spell(unread(), raws(*map(list, spellings), separators=separators))
    assert list(found) == spellings
    assert (found.lengths.dtype, len(found)) == (np.int32, len(spellings))


def test_every_byte_is_read() -> None:
    each = [[value] for value in range(256)]
    assert spell(unread(), raws(*each)).data == bytes(range(256))
    assert spell(unread(), raws(list(range(256)))).data == bytes(range(256))


token = st.tuples(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    st.none() | st.just(...) | st.binary(max_size=4).map(list),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(token, min_size=1, max_size=8), st.sampled_from([COMPACT, WIDE]))
def test_where_bytes_are_missing_the_text_speaks(
    tokens: list[tuple[str, Any]], separators: tuple[str, str]
) -> None:
    found = spell(
        (text for text, _ in tokens), raws(*(b for _, b in tokens), separators=separators)
    )
    assert list(found) == [
        text.encode() if spelling in (None, ...) else bytes(spelling) for text, spelling in tokens
    ]


def test_white_space_does_not_matter() -> None:
    given_ones = [msgspec.Raw(b"[\n  104,\n  105\n]"), msgspec.Raw(b"[ ]"), msgspec.Raw(b"[\t33 ]")]
    assert list(spell("abc", given_ones)) == [b"hi", b"", b"!"]


@pytest.mark.parametrize(
    "hostile",
    [[256], [999], [1000], [-1], [1.5], [[1]], [1, [2]], [None], ["1"], "abc", 7, {"0": 1}, True],
)
@pytest.mark.parametrize("others", [[], [[104, 105]], [None], [...]])
def test_what_is_no_list_of_bytes_is_refused(hostile: Any, others: list[Any]) -> None:
    """Absent ones beside it must not make the brackets come out even."""
    for lists in ([hostile, *others], [*others, hostile]):
        with pytest.raises(ValueError, match=r".+"):
            spell(["x"] * len(lists), raws(*lists))


def test_a_text_that_utf8_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        spell(["\ud800"], raws(None))


def test_byte_strings_refuse_lengths_that_are_not_their_data_s() -> None:
    for lengths in ([2, 2], [4, -1], []):
        with pytest.raises(ValueError, match="lengths of byte strings"):
            ByteStrings(b"abc", np.array(lengths, np.int32))
    assert list(ByteStrings.of([b"a", b"", b"bc"])) == [b"a", b"", b"bc"]
    assert len(ByteStrings.of([])) == 0
