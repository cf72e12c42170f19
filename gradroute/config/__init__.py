"""What a run is: the typed configuration, its checks, and composing it from YAML and overrides. Never imports torch."""
