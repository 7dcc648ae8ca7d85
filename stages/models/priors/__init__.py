"""Priors: models of the distribution of a picture's tokens."""
