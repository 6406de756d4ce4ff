"""Sum up what a corpus cost, from the attempt rows: one for every request, whatever came of it.

Sums are integers (picodollars, tokens). What is unknown is counted apart and never taken as zero.
Only committed attempts are counted; while a run goes on, the newest ones are still in its journal.
"""

from corpusgen.ledger.read import gpus_of, latest_curation, read_ledger
from corpusgen.ledger.sums import GpuTime, Ledger, Sums
from corpusgen.ledger.tables import ledger_csv, ledger_json, ways

__all__ = [
    "GpuTime",
    "Ledger",
    "Sums",
    "gpus_of",
    "latest_curation",
    "ledger_csv",
    "ledger_json",
    "read_ledger",
    "ways",
]
