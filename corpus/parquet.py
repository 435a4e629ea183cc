"""A .parquet file, opened and read so that damage is told and not passed on."""

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from corpus.arrow import check_schema
from corpus.rows import Columns, CorpusError
from corpus.sources import RemoteError, reason

BATCH_ROWS = 256
# What reading a damaged file raises. Of pyarrow's errors, one is a MemoryError too, and says nothing of the file.
Damaged = (OSError, pa.ArrowException, UnicodeDecodeError, KeyError, OverflowError)


def open_file(path: str, raw: BinaryIO, columns: Columns) -> pq.ParquetFile:
    """Return the file. Raises CorpusError for a damaged one, and for columns that are missing or of a wrong type."""
    try:
        # Spark writes times of 96 bits, in microseconds; as nanoseconds, the year 9999 would become another.
        file = pq.ParquetFile(
            raw,
            pre_buffer=False,
            buffer_size=1 << 20,
            page_checksum_verification=True,
            coerce_int96_timestamp_unit="us",
        )
        check_schema(path, file.schema_arrow, columns)
        return file
    except (MemoryError, CorpusError):
        raise
    except RemoteError as error:
        raise CorpusError(f"{path}: cannot be read: {reason(error)}; download the file and name it") from error
    except Damaged as error:
        raise CorpusError(
            f"{path}: not a whole parquet file: {reason(error)}; its end, which says what it holds, is missing or "
            "damaged: copy or write it anew"
        ) from error


def batches(file: pq.ParquetFile, columns: Columns) -> Iterator[pa.RecordBatch]:
    """Yield the file's rows. Raises what `Damaged` names, also where there are fewer or more rows than it says."""
    metadata, count = file.metadata, 0
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    for batch in file.iter_batches(BATCH_ROWS, columns=columns.wanted(), use_threads=False):
        count += batch.num_rows
        yield batch
    if not count == sum(groups) == metadata.num_rows:
        raise OSError(f"it has {count} rows, {sum(groups)} by its groups, and says {metadata.num_rows}")
