"""The gRPC front end: bytes to calls of the data plane and back. Knows nothing of HTTP."""
