"""Moving bytes within bounds: part sizes, memory, threads and retries. Knows no SDK and no format."""
