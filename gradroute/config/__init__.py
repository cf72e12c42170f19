"""The typed configuration of a run: compose it from YAML and overrides, and check it. Never imports torch."""
