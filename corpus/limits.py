"""How much of a file is in memory at once, and the settings for honest files that need more."""

from dataclasses import dataclass

import settings

MB = 1 << 20
# Below this size any ratio is allowed: logs and tables with few distinct values pack tightly.
ANY_RATIO_BYTES = 256 * MB
# A JSON value takes up to about 200 bytes of memory and a CSV field 60, however short they are in the file.
ROW_VALUES = 1 << 19


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of reading, each with its setting."""

    line_bytes: int
    """Of a line, and of a row with all its columns. CORPUS_LINE_MB."""
    window_bytes: int
    """Of a decompressor's window. CORPUS_WINDOW_MB."""
    unpack_ratio: int
    """How many times its own size a file may have unpacked. CORPUS_UNPACK_RATIO."""
    parquet_bytes: int
    """Of the process that reads a .parquet file. CORPUS_PARQUET_MB."""

    @classmethod
    def of_settings(cls) -> "Limits":
        """Return the limits from the environment. Raises SettingError."""
        return cls(
            settings.count("CORPUS_LINE_MB", 16) * MB,
            settings.count("CORPUS_WINDOW_MB", 128) * MB,
            settings.count("CORPUS_UNPACK_RATIO", 200),
            settings.count("CORPUS_PARQUET_MB", 768) * MB,
        )

    def unpacked_bytes(self, packed_bytes: int) -> int:
        """Return how much a file of this size may unpack to."""
        return max(ANY_RATIO_BYTES, self.unpack_ratio * packed_bytes)

    def too_far_unpacked(self, packed_bytes: int) -> str:
        """Return in words that a file unpacks to more than `unpacked_bytes`."""
        return (
            f"its {packed_bytes:,} bytes unpack to more than {self.unpacked_bytes(packed_bytes):,}; if it is meant to, "
            f"set CORPUS_UNPACK_RATIO to more than {self.unpack_ratio}"
        )

    def too_long(self, what: str) -> str:
        """Return in words that a line or row, named by `what`, is too long."""
        return (
            f"{what} has more than {self.line_bytes // MB:,} MB; divide it, or set CORPUS_LINE_MB to more than "
            f"{self.line_bytes // MB:,}"
        )


def too_many_values(what: str) -> str:
    """Return in words that a row, named by `what`, has too many fields or values."""
    return f"{what} has more than {ROW_VALUES:,} commas and brackets; leave columns out that are not needed"
