"""One script for each engine: it loads the model and then carries out what stdin asks for.

Each runs with the Python of its engine's own environment, as a module of this folder, and imports
nothing of this project but `protocol` (the one for Naiad aside).
"""
