"""Data sets of images and documents, and the rules that assign their points to groups."""
