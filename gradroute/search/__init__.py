"""Searches over configurations by Optuna."""
