"""Pages of the pipeline in a real browser: what they load, how fast they are, what they look like."""
