"""The console scripts, and the Python interface."""
