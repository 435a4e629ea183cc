"""What was asked, and what the model reads."""
