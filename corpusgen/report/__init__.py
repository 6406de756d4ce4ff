"""The report: one HTML file that tells what a corpus holds, what it cost and what was dropped."""
