"""What runs beside a `model.py`, in a worker process or in the server:
`triton_python_backend_utils` and what stands behind it.

Needs the standard library and NumPy only, so that any interpreter from 3.11 on can be a worker.
"""
