"""Print planned samples as the requests that will be sent: `plan --show N`."""

from __future__ import annotations

import sys

import msgspec

from corpusgen.attempts import request_for
from corpusgen.config_file import LoadedConfig
from corpusgen.corpus import Corpus
from corpusgen.pipeline.asking import make_teachers
from corpusgen.teachers.interface import Teacher
from corpusgen.types import Sample


def show_requests(loaded: LoadedConfig, count: int) -> None:
    """Print the first `count` planned requests as JSON, a line each."""
    corpus = Corpus(loaded.config.out)
    teachers = make_teachers(loaded.config)
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
                **_sent(loaded, teachers.get(sample.teacher), sample),
            }
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(line)).decode() + "\n")
            shown += 1


def _sent(loaded: LoadedConfig, teacher: Teacher | None, sample: Sample) -> dict[str, object]:
    if sample.problem is not None:
        return {"problem": sample.problem}
    if teacher is None:
        return {"problem": f"the configuration has no teacher {sample.teacher}"}
    config = loaded.config
    top, ids = config.sampling.top_logprobs, config.generate.prompt_token_ids
    shown = teacher.preview(request_for([sample], top, ids))
    return {"request": shown}
