"""Tasks: reconstruction, classification and language modelling, each with its objective and measures."""
