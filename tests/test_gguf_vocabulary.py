from __future__ import annotations

import hashlib
import random
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpusgen.teachers.gguf_vocabulary import (
    Header,
    NotGguf,
    digest,
    read_header,
    read_vocabulary,
)

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

BYTE_LEVEL = {
    "<|end|>": (CONTROL, b""),
    "Hello": (NORMAL, b"Hello"),
    "Ġworld": (NORMAL, b" world"),
    "Ċ": (NORMAL, b"\n"),
    "ðŁ": (NORMAL, b"\xf0\x9f"),
    "©": (NORMAL, b"\xa9"),
    "Ń": (NORMAL, b"\xad"),
    "<think> ▁": (USER_DEFINED, "<think> ▁".encode()),
    "二": (NORMAL, "二".encode()),
    "[PAD1]": (UNUSED, b""),
}
SENTENCEPIECE = {
    "<unk>": (UNKNOWN, b""),
    "</s>": (CONTROL, b""),
    "<0x0A>": (BYTE, b"\n"),
    "<0xF0>": (BYTE, b"\xf0"),
    "▁river": (NORMAL, b" river"),
    "é": (NORMAL, "é".encode()),
    "▁▁": (USER_DEFINED, "▁▁".encode()),
}


def write(path: Path, model: str, tokens: dict[str, tuple[int, bytes]]) -> Path:
    """Write a small GGUF file with the reference implementation."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_bool("a.bool", True)
    writer.add_float64("a.double", 0.5)
    writer.add_int8("a.byte", -3)
    writer.add_array("an.array", [1, 2, 3])
    writer.add_tokenizer_model(model)
    writer.add_token_list(list(tokens))
    writer.add_token_types([kind for kind, _ in tokens.values()])
    writer.add_token_merges(["a b", "c d"])
    writer.add_chat_template("{{ messages[0].content }}é")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.gguf", "gpt2", BYTE_LEVEL)


def test_the_header_is_what_was_written(file: Path) -> None:
    header = read_header(file)
    assert header.fields["a.bool"] is True
    assert header.fields["a.double"] == 0.5
    assert header.fields["a.byte"] == -3
    assert header.fields["an.array"].tolist() == [1, 2, 3]
    assert header.text("general.architecture") == "llama"
    assert header.text("a.bool") is None
    assert header.chat_template == "{{ messages[0].content }}é"
    assert header.vocabulary_size == len(BYTE_LEVEL)


@pytest.mark.parametrize(
    ("model", "tokens"), [("gpt2", BYTE_LEVEL), ("llama", SENTENCEPIECE)], ids=["gpt2", "llama"]
)
def test_each_token_has_its_bytes(
    tmp_path: Path, model: str, tokens: dict[str, tuple[int, bytes]]
) -> None:
    vocabulary = read_vocabulary(read_header(write(tmp_path / "v.gguf", model, tokens)))
    assert vocabulary.pieces == [piece for _, piece in tokens.values()]
    whole = b"".join(vocabulary.pieces).decode("utf-8", "replace")
    assert vocabulary.decode(range(len(tokens))) == whole


def test_every_byte_has_one_token_in_gpt2s_table(tmp_path: Path) -> None:
    from corpusgen.teachers.gguf_vocabulary import _BYTE_OF_CHARACTER

    tokens = {chr(character): (NORMAL, b"") for character in _BYTE_OF_CHARACTER}
    vocabulary = read_vocabulary(read_header(write(tmp_path / "b.gguf", "gpt2", tokens)))
    assert sorted(vocabulary.pieces) == [bytes([byte]) for byte in range(256)]


def test_the_fingerprint_is_over_lengths_and_bytes(file: Path) -> None:
    expected = hashlib.blake2b(digest_size=16)
    for name, (_, piece) in BYTE_LEVEL.items():
        token = piece or name.encode()
        expected.update(len(token).to_bytes(4, "little") + token)
    assert read_vocabulary(read_header(file)).fingerprint == expected.hexdigest()


def test_the_fingerprint_tells_orders_and_borders_apart(tmp_path: Path) -> None:
    vocabularies = [["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab", "c", "d"]]
    seen = set()
    for index, names in enumerate(vocabularies):
        tokens = {name: (NORMAL, name.encode()) for name in names}
        path = write(tmp_path / f"{index}.gguf", "gpt2", tokens)
        seen.add(read_vocabulary(read_header(path)).fingerprint)
    assert len(seen) == len(vocabularies)


def test_a_file_without_vocabulary_says_so(tmp_path: Path) -> None:
    header = Header(path=tmp_path / "x.gguf", fields={})
    assert header.vocabulary_size == 0
    assert header.chat_template is None
    with pytest.raises(NotGguf, match="no vocabulary"):
        read_vocabulary(header)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "magic"),
        (b"{}\n", "magic"),
        (b"\x7fELF" + bytes(100), "magic"),
        (b"GGUF", "breaks off"),
        (b"GGUF" + bytes(20), "version 0"),
        (b"GGUF\0\0\0\3" + bytes(16), "version 50331648"),
        (b"GGUF\x63\0\0\0" + bytes(16), "version 99"),
        (b"GGUF\3\0\0\0" + bytes(8) + b"\xff" * 8, "breaks off"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "foreign.gguf"
    path.write_bytes(content)
    with pytest.raises(NotGguf, match=problem):
        read_header(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotGguf, match="cannot be read"):
        read_header(tmp_path / "missing.gguf")
    with pytest.raises(NotGguf, match="cannot be read"):
        read_header(tmp_path)


def test_a_file_torn_anywhere_is_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    torn = tmp_path / "torn.gguf"
    for length in range(0, len(whole), 7):
        torn.write_bytes(whole[:length])
        with pytest.raises(NotGguf):
            read_header(torn)


@pytest.mark.parametrize("value", [2**64 - 1, 2**63, 2**60, 2**32, 10_000])
@pytest.mark.parametrize("field", ["kv count", "string", "strings", "scalars"])
def test_a_count_beyond_the_file_is_refused_at_once(
    file: Path, tmp_path: Path, field: str, value: int
) -> None:
    whole = file.read_bytes()
    offset = {
        "kv count": 16,
        "string": whole.index(b"tokenizer.chat_template") + 23 + 4,
        "strings": whole.index(b"tokenizer.ggml.tokens") + 21 + 8,
        "scalars": whole.index(b"an.array") + 8 + 8,
    }[field]
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(whole[:offset] + value.to_bytes(8, "little") + whole[offset + 8 :])
    with pytest.raises(NotGguf):
        read_header(broken)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damage_never_raises_anything_else(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    generator = random.Random(seed)
    directory = tmp_path_factory.getbasetemp()
    source = directory / "source.gguf"
    if not source.exists():
        write(source, "gpt2", BYTE_LEVEL)
    content = bytearray(source.read_bytes())
    for _ in range(generator.randint(1, 8)):
        content[generator.randrange(4, len(content))] = generator.randrange(256)
    damaged = directory / "damaged.gguf"
    damaged.write_bytes(content)
    try:
        header = read_header(damaged)
        read_vocabulary(header)
    except NotGguf:
        return
    assert header.vocabulary_size >= 0


def test_the_digest_sees_size_head_and_tail(tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    contents = [
        b"a" * 10_000_000,
        b"a" * 10_000_001,
        b"b" + b"a" * 9_999_999,
        b"a" * 9_999_999 + b"b",
        b"",
        b"a",
    ]
    digests = []
    for content in contents:
        path.write_bytes(content)
        digests.append(digest(path))
    assert len(set(digests)) == len(contents)
    assert all(len(value) == 16 for value in digests)
    path.rename(tmp_path / "renamed.gguf")
    assert digest(tmp_path / "renamed.gguf") == digests[-1]


def test_the_digest_covers_all_parts_of_a_split_model(tmp_path: Path) -> None:
    first = tmp_path / "m-00001-of-00002.gguf"
    second = tmp_path / "m-00002-of-00002.gguf"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    before = digest(first)
    second.write_bytes(b"TWO")
    assert digest(first) != before
