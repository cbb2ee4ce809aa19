"""The engine: what runs in the process that has the weights. Knows tokens, not text."""
