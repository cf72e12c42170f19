"""Make one run or many from checked configurations; resume, verify and track them."""
