"""What a request asks (`options`, `request`, `checks`), and what the model reads (`prepare`, `chunking`)."""
