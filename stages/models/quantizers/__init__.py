"""Quantizers: feature vectors to the numbers of codes."""
