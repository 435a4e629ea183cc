"""Arrow types: which a column may have, and which it is kept as.

Carried values never become Python's and come back: those lack nanoseconds, for example.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from corpus.rows import BadRow, Columns, CorpusError, Row, cut, label, make_row, not_utf8, quoted


class UnfitValue(ValueError):
    """A value that the type of its column in all files does not hold."""


# Of views of lists pyarrow 26 cannot take rows, and casting leaves some invalid; the others no .parquet can hold.
NOT_CARRIED = (
    pa.types.is_list_view,
    pa.types.is_large_list_view,
    pa.types.is_union,
    pa.types.is_run_end_encoded,
    pa.types.is_interval,
)
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


def as_bytes(kind: pa.DataType) -> pa.DataType:
    """Return a type with bytes for strings, whose bytes need not be UTF-8."""
    kinds = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    return mapped(kind, lambda kind: kinds.get(kind, kind))


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


def located(fields: Iterable[pa.Field], name: str) -> list[tuple[int, ...]]:
    """Return where a column is: its number, or with dots in its `name` those of the structs that lead to it."""
    numbered = list(enumerate(fields))
    tops: list[tuple[int, ...]] = [(i,) for i, field in numbered if field.name == name]
    if tops:
        return tops
    structs = [(i, field) for i, field in numbered if pa.types.is_struct(field.type)]
    return [
        (i, *inner)
        for i, field in structs
        if name.startswith(f"{field.name}.")
        for inner in located(field.type, name[len(field.name) + 1 :])
    ]


def field_of(schema: pa.Schema, name: str) -> pa.Field:
    """Return a column that is there once, under its whole name."""
    [[first, *inner]] = located(schema, name)
    field = schema.field(first)
    for i in inner:
        field = field.type.field(i)
    return pa.field(name, field.type, metadata=field.metadata if not inner else None)


def column_of(batch: pa.RecordBatch | pa.Table, name: str) -> pa.Array | pa.ChunkedArray:
    """Return a column that is there once; a field is null where its struct is."""
    [[first, *inner]] = located(batch.schema, name)
    return pc.struct_field(batch.column(first), inner) if inner else batch.column(first)


def check_schema(place: str, schema: pa.Schema, columns: Columns, optional: Collection[str] = ()) -> list[str]:
    """Return the wanted columns that are there. Raises CorpusError as `check_names` does, and for an unfit type."""
    counts = {name: len(located(schema, name)) for name in columns.wanted()}
    there = {name: field_of(schema, name) for name in check_names(place, schema.names, counts, columns, optional)}

    def refused(name: str, kind: pa.DataType, needs: str) -> CorpusError:
        return CorpusError(place, f"{label(name)}: its type is {_words(kind)}", needs)

    for name, uses, null_too in ((columns.text, "texts", False), (columns.title, "titles", True)):
        kind = plain(there[name].type) if name in there else None
        if kind is not None and not (_is_string(kind) or (null_too and pa.types.is_null(kind))):
            raise refused(str(name), kind, f"{uses} are strings: write the column as strings")
    if columns.id in there:
        kind = plain(there[columns.id].type)
        if not (pa.types.is_integer(kind) or _is_string(kind)):
            raise refused(columns.id, kind, "ids are whole numbers or strings: write the column as one of them")
    for name in (name for name in columns.carried if name in there):
        kind = there[name].type
        if not _is_carried(kind):
            problem = f"{label(name)}: its type {cut(str(kind))} cannot be carried"
            raise CorpusError(place, problem, "write the column with lists, or with a type that .parquet has")
    return [*there]


def check_names(
    place: str, present: Sequence[str], counts: Mapping[str, int], columns: Columns, optional: Collection[str] = ()
) -> list[str]:
    """Return the wanted columns that are there. Raises CorpusError unless each is there once, or `optional`."""
    for name in columns.wanted():
        if not counts[name] and name not in optional:
            problem = f"no column {quoted(name)} among {columns.among(present, 'column')}"
            raise CorpusError(place, problem, "name the column that holds it")
        if counts[name] > 1:
            raise CorpusError(place, f"{counts[name]} columns are named {quoted(name)}", "rename all but one")
    return [name for name in columns.wanted() if counts[name]]


def common(first: pa.Field, second: pa.Field) -> pa.Field | None:
    """Return a field that holds all values of two, as of columns in different files, unchanged; None without one."""
    if pa.types.is_null(second.type) or first.equals(second, check_metadata=True):
        return first
    if pa.types.is_null(first.type):
        return second
    kinds = {first.type, second.type}
    mixed_signs = pa.uint64() in kinds and any(map(pa.types.is_signed_integer, kinds))
    if _family(first.type) != _family(second.type) or mixed_signs:
        return None
    schemas = [pa.schema([pa.field("", kind)]) for kind in (first.type, second.type)]
    try:
        kind = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None
    return pa.field(first.name, kind, metadata=first.metadata if first.metadata == second.metadata else None)


def _family(kind: pa.DataType) -> object:
    families = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, _is_string)
    return next((family for family in families if family(kind)), kind.id)


def completed(
    batch: pa.RecordBatch, columns: Columns, fields: Sequence[pa.Field], given: Mapping[str, str | None]
) -> pa.RecordBatch:
    """Return a batch with all wanted columns: carried ones of their `fields`, absent ones as `given`.

    Raises UnfitValue for a value that its column's type does not hold.
    """
    kinds = {field.name: field.type for field in fields}
    arrays = []
    for name in columns.wanted():
        if name in batch.schema.names:
            array = batch.column(name)
        else:
            array = pa.array([given[name]] * batch.num_rows, pa.string() if given[name] is not None else pa.null())
        try:
            arrays.append(array.cast(kinds.get(name, array.type)))
        except pa.ArrowException as error:
            raise UnfitValue(f"{label(name)}: not all of {array.type} fit {cut(str(kinds[name]))}: {error}") from None
    return pa.RecordBatch.from_arrays(arrays, names=columns.wanted())


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


def _is_carried(kind: pa.DataType) -> bool:
    inner = (kind.field(i).type for i in range(kind.num_fields))
    return not any(unfit(kind) for unfit in NOT_CARRIED) and all(map(_is_carried, inner))


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
