"""Files into model configurations: where models lie, what they say, where they come from."""
