"""Turn prompts into a distillation corpus: a teacher's answers with their logprobs, curated.

>>> import corpusgen
>>> result = corpusgen.run("prompts/quickstart.yaml")          # doctest: +SKIP
>>> corpus = corpusgen.load("runs/quickstart")                  # doctest: +SKIP
>>> corpus.generations().to_table(columns=["text", "topk_ids"]) # doctest: +SKIP

`run` and `load` are imported when they are first used, so that `import corpusgen` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from corpusgen.api import run as run
    from corpusgen.corpus import Corpus as Corpus
    from corpusgen.corpus import load as load
    from corpusgen.errors import CorpusgenError as CorpusgenError

__all__ = ["Corpus", "CorpusgenError", "__version__", "load", "run"]

_HOMES = {
    "run": "corpusgen.api",
    "load": "corpusgen.corpus",
    "Corpus": "corpusgen.corpus",
    "CorpusgenError": "corpusgen.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'corpusgen' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
