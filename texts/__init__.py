"""What was asked (`options`, `request`, `checks`) and what the model reads of it (`prepare`, `chunking`)."""
