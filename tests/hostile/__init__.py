"""Files that wish us ill, made by the tests: what each is, who reads it, and what must come of it."""
