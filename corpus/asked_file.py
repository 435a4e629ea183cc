"""What a prediction says of its file, and the settings of files; without the libraries that read one.

They take as long to import as Cog, and most servers never see a file.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import settings
from corpus.limits import MB, Limits
from corpus.rows import Columns

if TYPE_CHECKING:
    from corpus.inputs import Inputs

ANSWER_MB = 16_384
FILES_AT_ONCE = 2
FILES_WAITING = 64


@dataclass(frozen=True, slots=True)
class InputFile:
    """The file of a prediction: its URL, or the path that it was fetched to, and the inputs that describe it.

    `file_format` is `auto` where the name tells.
    """

    path: Path | str
    file_format: str
    columns: Columns
    skip: bool
    output_format: str

    def open(self) -> "Inputs":
        """Open the file. Raises CorpusError, which quotes nothing of it, as servers log what they answer."""
        from corpus.inputs import Inputs

        columns = replace(self.columns, quotes=False)
        return Inputs([str(self.path)], columns, None if self.file_format == "auto" else self.file_format, name="file")


def check_beside_file(**inputs: object) -> None:
    """Raise ValueError for texts and titles that are given beside a file."""
    if given := [name for name, value in inputs.items() if value is not None]:
        raise ValueError(f"file, {', '.join(given)}: give a file, whose columns have texts and titles, or give texts")


def check_settings() -> None:
    """Raise SettingError for an impossible value of a setting of files."""
    Limits.of_settings()
    places_set()
    answer_bytes()


def places_set() -> tuple[int, int]:
    """Return how many files are worked on at once, and how many may wait. Raises SettingError."""
    return settings.count("FILES_AT_ONCE", FILES_AT_ONCE), settings.count("FILES_WAITING", FILES_WAITING)


def answer_bytes() -> int:
    """Return the most bytes of an answer. Raises SettingError."""
    return settings.count("FILE_ANSWER_MB", ANSWER_MB) * MB
