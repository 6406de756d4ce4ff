"""Read prompt sets: files of many kinds become a stream of prompts and of rows that are none.

It plans nothing, removes no duplicates and keeps no row longer than it takes to pass it on.
"""

from corpusgen.prompts.reader import fingerprint, read_prompts

__all__ = ["fingerprint", "read_prompts"]
