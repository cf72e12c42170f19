"""What a run does, in order: one file a step."""
