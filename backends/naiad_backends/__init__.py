"""The backend contract (`api`, `errors`, `datatypes`), discovery, and Naiad's own backends.

A backend imports the contract and its own framework, nothing else of Naiad.
"""
