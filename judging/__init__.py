"""Whether a server's vectors are this model's and, where they are not, what was done wrong."""
