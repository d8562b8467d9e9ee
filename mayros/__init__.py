"""Mayros Gateway: one daemon between chat programs on one side and language models on the other."""
