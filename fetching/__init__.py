"""Fetches checkpoints for `weights` (download, unpack, hash), and the files of predictions."""
