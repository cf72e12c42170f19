"""Data sets: images, documents, and the groups that rules make of them."""
