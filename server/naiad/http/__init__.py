"""HTTP front end: bytes to Request, Response to bytes. Knows nothing of gRPC or scheduling."""
