"""Models. They know nothing of routing: a site is any of their modules, by its dotted name."""
