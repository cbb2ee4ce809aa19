"""Which model, which version, when and on what. Knows no wire format."""
