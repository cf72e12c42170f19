"""The training loop, its gradients, objectives, ledger and devices."""
