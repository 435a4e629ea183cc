"""Arrow types: which a column may have, and which it is kept as.

Carried values never become Python's and come back: those lack nanoseconds, for example.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from corpus.rows import BadRow, Columns, CorpusError, Row, cut, label, make_row, not_utf8, quoted

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
    """Return the type that a column is kept as: without dictionaries, and without views, which few functions take."""

    def leaf(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_dictionary(kind):
            return plain(kind.value_type)
        return {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(kind, kind)

    return mapped(kind, leaf)


def for_json(kind: pa.DataType) -> pa.DataType:
    """Return the type whose Python values are JSON without loss; bytes are left to the caller.

    Times become ISO 8601 with all their digits (beyond year 32767, a number with a note), durations numbers of their
    unit, decimals strings.
    """

    def leaf(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_duration(kind):
            return pa.int64()
        if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
            return pa.string()
        return kind

    return mapped(kind, leaf)


def in_utc(kind: pa.DataType) -> pa.DataType:
    """Return a type whose zoned times are in UTC: the same instants, without looking up any zone."""
    return mapped(kind, lambda kind: pa.timestamp(kind.unit, "UTC") if getattr(kind, "tz", None) else kind)


def check_schema(place: str, schema: pa.Schema, columns: Columns) -> None:
    """Raise CorpusError for a column that is missing, there twice, or of a type that its use does not allow."""

    def refused(name: str, kind: pa.DataType, needs: str) -> CorpusError:
        return CorpusError(place, f"{label(name)}: its type is {_words(kind)}", needs)

    check_names(place, schema.names, columns)
    for name, uses, null_too in ((columns.text, "texts", False), (columns.title, "titles", True)):
        kind = None if name is None else plain(schema.field(name).type)
        if kind is not None and not (_is_string(kind) or (null_too and pa.types.is_null(kind))):
            raise refused(str(name), kind, f"{uses} are strings: write the column as strings")
    if columns.id is not None:
        kind = plain(schema.field(columns.id).type)
        if not (pa.types.is_integer(kind) or _is_string(kind)):
            raise refused(columns.id, kind, "ids are whole numbers or strings: write the column as one of them")
    for name in columns.carried:
        kind = schema.field(name).type
        if any(pa.types.is_list_view(leaf) or pa.types.is_large_list_view(leaf) for leaf in _leaves(kind)):
            # pyarrow 26 cannot take rows of them, and casting leaves some of them invalid.
            problem = f"{label(name)}: its type {cut(str(kind))} cannot be carried"
            raise CorpusError(place, problem, "write the column with lists")


def check_names(place: str, present: Sequence[str], columns: Columns) -> None:
    """Raise CorpusError unless each wanted column is there once."""
    counts = Counter(present)
    for name in columns.wanted():
        if not counts[name]:
            problem = f"no column {quoted(name)} among {columns.among(present, 'column')}"
            raise CorpusError(place, problem, "name the column that holds it")
        if counts[name] > 1:
            raise CorpusError(place, f"{counts[name]} columns are named {quoted(name)}", "rename all but one")


def plain_fields(schema: pa.Schema, columns: Columns) -> list[pa.Field]:
    """Return the field `id`, and those of the carried columns, as they are kept."""
    id_type = pa.int64() if columns.id is None else plain(schema.field(columns.id).type)
    carried = (schema.field(name) for name in columns.carried)
    return [pa.field("id", id_type), *(field.with_type(plain(field.type)) for field in carried)]


def batch_rows(batch: pa.RecordBatch, columns: Columns, first: int, exact: bool) -> Iterator[Row | BadRow]:
    """Yield the rows of a batch, the first with number `first`.

    With `exact` a carried value is an array of that single value, otherwise Python's.
    """
    arrays = {name: batch.column(name) for name in columns.wanted()}
    arrays = {name: array.cast(plain(array.type)) for name, array in arrays.items()}
    read = {name: _values(arrays[name]) for name in (columns.text, columns.title, columns.id) if name is not None}
    doubtful = [name for name in columns.carried if exact and not _is_valid(arrays[name])]
    for i in range(batch.num_rows):
        try:
            for name in doubtful:
                if not _is_valid(arrays[name].slice(i, 1)):
                    raise ValueError(f"{label(name)}: not UTF-8, or damaged; write the column anew, or do not carry it")
            values = {name: _value(python, arrays[name], i, name) for name, python in read.items()}
            carried = (
                arrays[name].slice(i, 1) if exact else _value(None, arrays[name], i, name) for name in columns.carried
            )
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


def _values(array: pa.Array) -> list[Any] | None:
    """Return Python's values, None where not all are UTF-8."""
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        return None


def _value(values: list[Any] | None, array: pa.Array, i: int, name: str) -> Any:
    try:
        return array[i].as_py() if values is None else values[i]
    except UnicodeDecodeError as error:
        raise ValueError(f"{label(name)}: {not_utf8(error)}") from None


def _words(kind: pa.DataType) -> str:
    """Return a type's name, without the types within it."""
    return re.split(r"[<\[]", str(kind), maxsplit=1)[0]


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
