"""Measure repetition as Gopher's data did: Rae et al. 2021, arXiv 2112.11446, table A1.

Lines, paragraphs and word n-grams that repeat within one text. Words are what stands between
blanks, so that on scripts without blanks only lines and paragraphs speak. The rules were made for
web pages: they flag 15% of code, hence they are an option and never a default.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

TOP_NGRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
"""n, and the largest share of characters that the most frequent n-gram may cover."""
DUPLICATE_NGRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
"""n, and the largest share of characters that n-grams seen before may cover."""
DUPLICATE_PIECES = 0.30
"""The largest share of lines, and of paragraphs, that were seen before."""
DUPLICATE_PIECE_CHARS = 0.20
"""The largest share of characters in such lines, and in such paragraphs."""


def gopher_repetition(text: str) -> str | None:
    """Return the first rule that the text breaks, as a reason; null: it breaks none."""
    for name, pieces in (
        ("paragraphs", [p.strip() for p in text.split("\n\n") if p.strip()]),
        ("lines", [line.strip() for line in text.split("\n") if line.strip()]),
    ):
        if _duplicated(pieces):
            return f"Gopher: duplicate {name}"
    words = text.split()
    characters = sum(map(len, words))
    for n, limit in TOP_NGRAMS:
        if _top_share(words, n, characters) > limit:
            return f"Gopher: top {n}-gram"
    for n, limit in DUPLICATE_NGRAMS:
        if _duplicate_share(words, n, characters) > limit:
            return f"Gopher: duplicate {n}-grams"
    return None


def _duplicated(pieces: Sequence[str]) -> bool:
    seen: set[str] = set()
    count = characters = 0
    for piece in pieces:
        if piece in seen:
            count += 1
            characters += len(piece)
        seen.add(piece)
    return count > DUPLICATE_PIECES * len(pieces) or characters > DUPLICATE_PIECE_CHARS * sum(
        map(len, pieces)
    )


def _top_share(words: Sequence[str], n: int, characters: int) -> float:
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    if not counts:
        return 0.0
    ngram, count = max(counts.items(), key=lambda item: (item[1], sum(map(len, item[0]))))
    return sum(map(len, ngram)) * count / characters if count > 1 else 0.0


def _duplicate_share(words: Sequence[str], n: int, characters: int) -> float:
    """Count each character of a repeated n-gram once, though n-grams overlap."""
    seen: set[tuple[str, ...]] = set()
    repeated = position = 0
    while position <= len(words) - n:
        ngram = tuple(words[position : position + n])
        if ngram in seen:
            repeated += sum(map(len, ngram))
            position += n
        else:
            seen.add(ngram)
            position += 1
    return repeated / characters if characters else 0.0
