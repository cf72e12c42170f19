"""Plots and pages of a run, drawn from its folder alone. Never imports torch."""
