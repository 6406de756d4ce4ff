"""Say what the samples that are left would cost, by the mean of those that have ended."""

from __future__ import annotations

from corpusgen.corpus import Corpus


def remaining_picousd(corpus: Corpus, pending: int) -> int | None:
    """Return what `pending` samples would cost, by this corpus' own mean; null without a mean.

    The mean is of each prompt set as it was planned, failures and lost attempts included; a set of
    which nothing has ended takes that of the whole corpus. From the commits alone.
    """
    planned: dict[tuple[str, str], int] = {}
    for run in corpus.plan.runs:
        planned[run.prompt_set, run.variant] = planned.get((run.prompt_set, run.variant), 0) + (
            run.rows
        )
    ended = dict.fromkeys(planned, 0)
    charged = dict.fromkeys(planned, 0)
    for commit in corpus.commits:
        run = corpus.plan.run_of(commit.partition)
        ended[run.prompt_set, run.variant] += commit.ended
        charged[run.prompt_set, run.variant] += commit.charged_picousd
    left = {key: count - ended[key] for key, count in planned.items()}
    if not sum(ended.values()) or not sum(left.values()):
        return None
    # Samples that were retired unanswered are left for ever; they thin all sets out alike.
    cost = sum(
        count * charged[key] // ended[key]
        if ended[key]
        else count * sum(charged.values()) // sum(ended.values())
        for key, count in left.items()
    )
    return cost * pending // sum(left.values())
