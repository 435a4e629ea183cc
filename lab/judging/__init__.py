"""Whether a server's vectors are this model's and, if not, what it does wrong."""
