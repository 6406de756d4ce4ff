"""Read rows from JSON Lines, JSON arrays and CSV as streams, each with the line it starts on.

A row that cannot be decoded is passed on with its problem. Only what makes all further rows
meaningless raises `PromptError`: a JSON array that is broken between rows, or a CSV header.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import msgspec

from corpusgen.errors import PromptError
from corpusgen.prompts.rows import MAX_ROW_BYTES, Row, json_problem, kind, one_line

_BOM = b"\xef\xbb\xbf"
_CHUNK_CHARACTERS = 1 << 18
_LONGEST_LITERAL = 16
"""Within so many characters of the end, a syntax error may only be a word that is cut in two."""
_KEPT_OF_OVERLONG = 4096
_SPACE = re.compile(r"[ \t\r\n]*")
_decode = msgspec.json.Decoder().decode


def jsonl_rows(stream: io.BufferedReader, shown: str) -> Iterator[Row]:
    """Yield a row for each line that is not blank; a torn or invalid line has a problem."""
    number = 0
    first = True
    while line := stream.readline(MAX_ROW_BYTES):
        number += 1
        where = f"{shown}:{number}"
        if len(line) == MAX_ROW_BYTES and line[-1:] != b"\n":
            _skip_line(stream)
            yield Row(where, None, line[:_KEPT_OF_OVERLONG], f"the line exceeds {_limit()}")
            first = False
            continue
        line = (line.removeprefix(_BOM) if number == 1 else line).strip()
        if not line:
            continue
        if first:
            _refuse_array(line, shown)
            first = False
        yield _json_row(where, line, "the line")


def json_rows(stream: io.BufferedReader, shown: str) -> Iterator[Row]:
    """Yield a row for each element of the array that the file holds; memory stays flat.

    The array is cut into elements by the standard library's scanner, which can begin anywhere in
    a text; the elements are then decoded as a line of JSON Lines is, by the same rules.
    """
    with _text(stream) as text:
        cutter = _Cutter(text, shown)
        if cutter.next_character() != "[":
            raise PromptError(
                f"{shown}: is not a JSON array of objects. "
                "If each of its lines is an object, set format: jsonl."
            )
        cutter.skip()
        if cutter.next_character() == "]":
            cutter.skip()
        else:
            yield from _elements(cutter, shown)
        if cutter.next_character():
            raise PromptError(
                f"{shown}:{cutter.line}: something follows the array's end. Remove it, or set "
                "format: jsonl if each line is an object."
            )


def csv_rows(stream: io.BufferedReader, shown: str) -> Iterator[Row]:
    """Yield a row for each record under the header; quoted fields may hold line breaks."""
    # The module's limit is process-wide, and 128 KiB is less than a long prompt; raising it
    # changes nothing for others but what they may read.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    with _text(stream) as text:
        yield from _records(_Lines(text, shown), shown)


class _Cutter:
    """Cut a JSON array's text into its elements, holding one chunk or one element at a time."""

    def __init__(self, text: io.TextIOBase, shown: str) -> None:
        self._text = text
        self._shown = shown
        self._buffer = ""
        self._at = 0
        self._ended = False
        self._scan = json.JSONDecoder(
            parse_int=_ignore, parse_float=_ignore, parse_constant=_ignore
        ).raw_decode
        self.line = 1
        """The line of the next character, counted from 1."""

    def next_character(self) -> str:
        """Pass over white space and return the next character, empty at the end."""
        while True:
            matched = _SPACE.match(self._buffer, self._at)
            assert matched is not None
            self._advance(matched.end())
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._fill(_CHUNK_CHARACTERS):
                return ""

    def skip(self) -> None:
        """Pass over one character."""
        self._advance(self._at + 1)

    def element(self) -> str:
        """Pass over one JSON value and return its text.

        Raises `PromptError` where there is none: what follows could then not be told apart.
        """
        wanted = _CHUNK_CHARACTERS
        while True:
            end = self._end_of_element()
            if end is not None:
                text = self._buffer[self._at : end]
                self._advance(end)
                return text
            if len(self._buffer) - self._at > MAX_ROW_BYTES:
                raise self._broken(f"an element exceeds {_limit()}")
            if not self._fill(wanted):
                raise self._broken("the array breaks off in an element that begins here")
            wanted *= 2  # so that a long element is not scanned again for each small chunk

    def _end_of_element(self) -> int | None:
        """Return where the value ends; null if the buffer may hold only a part of it."""
        try:
            _, end = self._scan(self._buffer, self._at)
        except json.JSONDecodeError as error:
            unfinished = error.msg.startswith("Unterminated string")
            near_end = len(self._buffer) - error.pos <= _LONGEST_LITERAL
            if self._ended and near_end and error.pos >= len(self._buffer):
                unfinished = True
            if not unfinished and (self._ended or not near_end):
                self._advance(error.pos)
                raise self._broken(f"not valid JSON: {error.msg}") from None
            return None
        except RecursionError:
            raise self._broken("an element is nested too deeply") from None
        # A number at the buffer's end may go on in the next chunk.
        return end if end < len(self._buffer) or self._ended else None

    def _fill(self, characters: int) -> bool:
        chunk = self._text.read(characters)
        self._ended = not chunk
        self._buffer = self._buffer[self._at :] + chunk
        self._at = 0
        return not self._ended

    def _advance(self, to: int) -> None:
        self.line += self._buffer.count("\n", self._at, to)
        self._at = to

    def _broken(self, problem: str) -> PromptError:
        return PromptError(
            f"{self._shown}:{self.line}: {problem}. Repair the file; JSON Lines (one object a "
            "line) loses only the broken row."
        )


def _elements(cutter: _Cutter, shown: str) -> Iterator[Row]:
    while True:
        cutter.next_character()
        where = f"{shown}:{cutter.line}"
        raw = cutter.element().encode("utf-8", "surrogateescape")
        yield _json_row(where, raw, "the element")
        follower = cutter.next_character()
        if follower not in (",", "]"):
            raise PromptError(
                f"{shown}:{cutter.line}: the array breaks off: a comma or ] is missing after an "
                "element. Repair the file."
            )
        cutter.skip()
        if follower == "]":
            return


def _json_row(where: str, raw: bytes, what: str) -> Row:
    try:
        values = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Row(where, None, raw, f"{what} is {json_problem(raw, error)}")
    if type(values) is not dict:
        return Row(where, None, raw, f"{what} is {kind(values)}, not an object")
    return Row(where, values, raw)


def _refuse_array(line: bytes, shown: str) -> None:
    """Raise `PromptError` if the first line begins an array of rows instead of being a row."""
    if line[:1] != b"[":
        return
    try:
        values = _decode(line)
        rows = isinstance(values, list) and bool(values) and isinstance(values[0], dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        rows = True
    if rows:
        raise PromptError(f"{shown}: holds a JSON array, not JSON Lines. Set format: json.")


def _skip_line(stream: BinaryIO) -> None:
    while (line := stream.readline(1 << 20)) and line[-1:] != b"\n":
        pass


class _Lines:
    """Iterate over a text's lines, and remember those of the record that is being read."""

    def __init__(self, text: io.TextIOBase, shown: str) -> None:
        self._text = text
        self._shown = shown
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        number = 0
        while line := self._text.readline(MAX_ROW_BYTES):
            number += 1
            if len(line) == MAX_ROW_BYTES:
                raise PromptError(
                    f"{self._shown}:{number}: the line exceeds {_limit()}. Is this CSV?"
                )
            self.taken.append(line)
            yield line

    def raw(self) -> bytes:
        """Return the record's bytes."""
        return "".join(self.taken).encode("utf-8", "surrogateescape")


def _records(lines: _Lines, shown: str) -> Iterator[Row]:
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        lines.taken.clear()
        where = f"{shown}:{reader.line_num + 1}"
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise PromptError(f"{where}: the CSV header is broken: {error}. Fix it.") from None
            yield Row(where, None, lines.raw(), f"the record is not valid CSV: {error}")
            continue
        if not record:
            continue
        if header is None:
            header = _header(record, where)
        else:
            yield _csv_row(header, record, where)


def _header(record: list[str], where: str) -> list[str]:
    # pandas writes its index under an empty name.
    names = [name or f"column{position}" for position, name in enumerate(record, 1)]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        name = one_line(min(twice))
        raise PromptError(
            f'{where}: the header names "{name}" twice. Give each column its own name.'
        )
    return names


def _csv_row(header: list[str], record: list[str], where: str) -> Row:
    if len(record) != len(header):
        raw = ",".join(record).encode("utf-8", "surrogateescape")
        problem = f"the record has {len(record)} fields, the header has {len(header)}"
        return Row(where, None, raw, problem)
    return Row(where, dict(zip(header, record, strict=True)), blank_is_null=True)


@contextmanager
def _text(stream: io.BufferedReader) -> Iterator[io.TextIOWrapper]:
    # A byte that is not UTF-8 becomes a lone surrogate, so that only its own row is bad.
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    try:
        yield text
    finally:
        text.detach()  # closing is the stream's owner's


def _limit() -> str:
    return f"{MAX_ROW_BYTES >> 20} MiB"


def _ignore(text: str) -> None:
    """Stand in for a number, which the scanner passes over without its value."""
    del text
