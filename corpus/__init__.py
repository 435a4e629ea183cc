"""Files of texts in, files of vectors out, in constant memory.

Rows are read one after the other (`readers`) and gathered into windows (`windows`); a window is tokenized, computed and
written as a shard of its own (`stages`, `shards`), and all shards become one file of vectors (`writers`). `run` does
all of it. Where the computing is done is chosen by who calls: an engine's `embed` is handed in.
"""
