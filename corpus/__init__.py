"""Files of texts in, files of vectors out, in constant memory.

`inputs` reads files one after another and `readers` yields the rows of one, `blocks` gathers them, `compute` makes
vectors of a block and `output_rows` rows of the vectors; `writers` and `output_files` make the output. `run` keeps
finished blocks in shards, so that it can be resumed; `prediction` goes through the queue that all requests share;
`cluster` runs in the actors of a Ray cluster.
"""
