"""One run or many, from checked configurations to their folders."""
