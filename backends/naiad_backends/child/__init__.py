"""Help for backends whose instances have a process each: one is started, spoken to, watched, ended,
and begun anew when it has died.

What is said to it, and what it answers, is a matter of the backend.
"""
