"""Published results, computed afresh: `python -m replications` runs them and writes RESULTS.md."""
