"""Telling somebody how a run ended: `notify` (who, when, how often tried) -> `ending` (what) -> `deliveries` (how)."""
