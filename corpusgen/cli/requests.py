"""Print planned samples as the requests that will be sent: `plan --show N`."""

from __future__ import annotations

import sys

import msgspec

from corpusgen.config_file import LoadedConfig
from corpusgen.corpus import Corpus
from corpusgen.fanout import request_for


def show_requests(loaded: LoadedConfig, count: int) -> None:
    """Print the first `count` planned requests as JSON, a line each."""
    corpus = Corpus(loaded.config.out)
    shown = 0
    for partition in range(corpus.plan.partitions):
        for sample in corpus.plan.samples_of(partition):
            if shown == count:
                return
            line = {
                "sample_id": sample.sample_id,
                "prompt_set": sample.prompt_set,
                "prompt_id": sample.prompt_id,
                "draw": sample.draw,
                "row": sample.row,
                "teacher": sample.teacher,
                "request": request_for(
                    sample,
                    loaded.config.sampling.top_logprobs,
                    loaded.config.generate.prompt_token_ids,
                ),
            }
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(line)).decode() + "\n")
            shown += 1
