"""Compare runs, read from disk. Never imports torch."""
