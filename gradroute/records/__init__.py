"""A run's records on disk: write them atomically, read them safely. Never imports torch."""
