"""Large language models: our own engine with a paged KV cache."""
