"""Published results, recomputed: `python -m replications` runs them and writes RESULTS.md."""
