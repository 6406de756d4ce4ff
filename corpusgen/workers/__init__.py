"""Spread a fan-out over processes, where one core is not enough; the parent owns all limits.

A worker asks, decodes, journals and commits partitions of its own. Before each request it asks the
parent for a place and a reservation over a socket, and tells it afterwards what became of them, so
that limits and budgets hold exactly as they do in one process.
"""
