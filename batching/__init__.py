"""Many requests in one forward pass: others call `batcher`, which raises what is in `errors`."""
