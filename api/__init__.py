"""The other clients' APIs: a file for each, and `server`, which serves them on a port."""
