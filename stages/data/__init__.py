"""Pictures on their way to the models: sources, decoding, shards, tables, and the order in which they are seen."""
