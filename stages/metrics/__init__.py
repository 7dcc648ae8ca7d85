"""How good the pictures are: distances between sets, reconstruction, codebook use, likelihood, the report."""
