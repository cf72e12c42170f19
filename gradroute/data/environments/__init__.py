"""Environments that a policy acts in, many worlds at once."""
