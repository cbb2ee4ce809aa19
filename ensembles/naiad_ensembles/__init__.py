"""Pipelines of models: the graph of an ensemble and the walk over it."""
