"""Files of texts in, files of vectors out.

`inputs` reads files one after another and `readers` yields the rows of one, `blocks` gathers them, `compute` makes
vectors of a block and `output_rows` rows of the vectors; `writers`, `output_files` and `folders` make the output, and
`destination` puts it in its place. `previous` reads the output that an update takes over, and finds its texts by
`sorted_keys` on the disk. `run` keeps finished blocks in shards, so that it can be resumed; `prediction` goes through
the queue that all requests share; `cluster` runs in the actors of a Ray cluster.
"""
