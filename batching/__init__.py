"""Many requests, one forward pass: `batcher` is what others call, `errors` what it raises."""
