"""What the vectors are worth: mteb's tasks and scorers on every size, precision and chunking, from one pass."""
