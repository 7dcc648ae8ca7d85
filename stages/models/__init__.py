"""Networks and losses, single-device code: they know nothing of ranks, precision or files of a run."""
