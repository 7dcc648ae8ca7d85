"""Turning shards into tables of tokens: what the workers of the encode stage do."""
