"""How stages run: fingerprints, units, commits, resume, runtimes, tracking. Knows nothing of torch or of pictures."""
