"""Load harness: what a request costs Naiad and other servers, measured in one run.

A tool beside the project, not a part of it: it knows the servers only by their commands and ports.
"""
