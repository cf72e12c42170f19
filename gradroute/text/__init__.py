"""Text as data: documents, tokens, packing, and which tokens belong to a group. Nothing here knows a model."""
