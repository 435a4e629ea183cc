"""Files of texts in, files of vectors out, in constant memory.

`readers` gives rows, `blocks` gathers them, `compute` turns a block into vectors and vectors into rows of the output,
`writers` makes the file. `run` keeps what is done in shards, so that it can be resumed; `prediction` goes through the
queue that all requests share; `cluster` runs in the actors of a Ray cluster.
"""
