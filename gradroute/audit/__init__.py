"""Audit whether a region's ablation removed what a group taught, or only hides it: anchors, attacks, verdicts."""
