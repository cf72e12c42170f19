"""Runs side by side, read from disk. Never imports torch."""
