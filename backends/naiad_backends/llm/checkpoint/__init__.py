"""Reads what a model's author has published: Hugging Face folders and GGUF files. NumPy only."""
