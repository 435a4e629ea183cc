"""Cog's server and what surrounds it: the world reaches `front`, and `supervisor` keeps the server running."""
