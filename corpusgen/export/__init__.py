"""Export: kept generations become a dataset that a trainer loads, with its card."""
