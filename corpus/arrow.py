"""Arrow types: which column may hold what, and as what it is kept.

What is carried is never turned into Python's values and back: they have no nanoseconds, for one.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from corpus.rows import BadRow, Columns, CorpusError, Row, make_row, not_utf8

Leaf = Callable[[pa.DataType], pa.DataType]


def mapped(kind: pa.DataType, leaf: Leaf) -> pa.DataType:
    """Return a type with `leaf` of every type in it that holds no others, or that is a view of lists."""

    def inner(field: pa.Field) -> pa.Field:
        return field.with_type(mapped(field.type, leaf))

    if pa.types.is_struct(kind):
        return pa.struct([inner(field) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(inner(kind.key_field), inner(kind.item_field), kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inner(kind.value_field), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(inner(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(inner(kind.value_field))
    return leaf(kind)


def plain(kind: pa.DataType) -> pa.DataType:
    """Return the type that a column is kept as: without dictionaries, and without views, which few functions know."""

    def leaf(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_dictionary(kind):
            return plain(kind.value_type)
        return {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(kind, kind)

    return mapped(kind, leaf)


def for_json(kind: pa.DataType) -> pa.DataType:
    """Return the type whose Python values are JSON that loses nothing; bytes are left to the caller.

    Times become ISO 8601 in all their digits (beyond year 32767 their number, and that it is), durations numbers of
    their unit, decimals strings.
    """

    def leaf(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_duration(kind):
            return pa.int64()
        if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
            return pa.string()
        return kind

    return mapped(kind, leaf)


def in_utc(kind: pa.DataType) -> pa.DataType:
    """Return a type whose times, where they have a zone, are in UTC: the same instants, and no zone is looked up."""
    return mapped(kind, lambda kind: pa.timestamp(kind.unit, "UTC") if getattr(kind, "tz", None) else kind)


def check_schema(place: str, schema: pa.Schema, columns: Columns) -> None:
    """Raise CorpusError for a column that is missing, there twice, or of a type that its use does not allow."""
    check_names(place, schema.names, columns)
    for name, uses, null_too in ((columns.text, "texts", False), (columns.title, "titles", True)):
        kind = None if name is None else plain(schema.field(name).type)
        if kind is not None and not (_is_string(kind) or (null_too and pa.types.is_null(kind))):
            raise CorpusError(f"{place}: {name}: its type is {kind}; {uses} are strings: write the column as strings")
    if columns.id is not None:
        kind = plain(schema.field(columns.id).type)
        if not (pa.types.is_integer(kind) or _is_string(kind)):
            raise CorpusError(
                f"{place}: {columns.id}: its type is {kind}; ids are whole numbers or strings: write the column as one "
                "of them"
            )
    for name in columns.carried:
        kind = schema.field(name).type
        if any(pa.types.is_list_view(leaf) or pa.types.is_large_list_view(leaf) for leaf in _leaves(kind)):
            # pyarrow 26 neither takes rows of them nor casts them without leaving some of them invalid.
            raise CorpusError(f"{place}: {name}: its type {kind} cannot be carried; write the column with lists")


def check_names(place: str, present: Sequence[str], columns: Columns) -> None:
    """Raise CorpusError unless each wanted column is there once."""
    counts = Counter(present)
    for name in columns.wanted():
        if not counts[name]:
            raise CorpusError(
                f"{place}: no column {name!r} among {', '.join(map(repr, present)) or 'no columns'}; "
                "name the column that holds it"
            )
        if counts[name] > 1:
            raise CorpusError(f"{place}: {counts[name]} columns are named {name!r}; rename all but one")


def plain_fields(schema: pa.Schema, columns: Columns) -> list[pa.Field]:
    """Return the field `id`, and those of the carried columns, as they are kept."""
    id_type = pa.int64() if columns.id is None else plain(schema.field(columns.id).type)
    carried = (schema.field(name) for name in columns.carried)
    return [pa.field("id", id_type), *(field.with_type(plain(field.type)) for field in carried)]


def batch_rows(batch: pa.RecordBatch, columns: Columns, first: int, exact: bool) -> Iterator[Row | BadRow]:
    """Yield the rows of a batch, the first with number `first`.

    With `exact` a carried value is an array of this one, and Python's otherwise.
    """
    arrays = {name: batch.column(name) for name in columns.wanted()}
    arrays = {name: array.cast(plain(array.type)) for name, array in arrays.items()}
    read = [name for name in (columns.text, columns.title, columns.id) if name is not None]
    doubtful = [name for name in columns.carried if exact and not _is_valid(arrays[name])]
    for i in range(batch.num_rows):
        try:
            for name in doubtful:
                if not _is_valid(arrays[name].slice(i, 1)):
                    raise ValueError(f"{name}: not UTF-8, or damaged; write the column anew, or do not carry it")
            values = {name: _value(arrays[name], i, name) for name in read}
            carried = (arrays[name].slice(i, 1) if exact else _value(arrays[name], i, name) for name in columns.carried)
            yield make_row(columns, first + i, values, tuple(carried))
        except ValueError as error:
            yield BadRow(first + i, str(error))


def _is_valid(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _leaves(kind: pa.DataType) -> list[pa.DataType]:
    leaves: list[pa.DataType] = []

    def leaf(kind: pa.DataType) -> pa.DataType:
        leaves.append(kind)
        return kind

    mapped(kind, leaf)
    return leaves


def _value(array: pa.Array, i: int, name: str) -> Any:
    try:
        return array[i].as_py()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {not_utf8(error)}") from None


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
