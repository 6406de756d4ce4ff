"""The plan: which samples a corpus consists of, in which partitions. Append-only, offline.

`segments` reads what was planned, `planning` adds to it, `spill` keeps both in flat memory.
"""
