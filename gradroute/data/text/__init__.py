"""Documents, tokenizers and packed rows of tokens."""
