"""Search over configurations with Optuna."""
