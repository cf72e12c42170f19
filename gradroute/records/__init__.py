"""What a run leaves on disk, written atomically and read safely. Never imports torch."""
