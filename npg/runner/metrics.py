"""metrics.csv: one row per update (A3C: per round), one column for each number that an update yields."""

import csv
import io
import os
import pathlib

from npg.runner.folder import RunError, write_atomically, writing

COUNTERS = ("update", "env_steps", "episodes", "seconds")
COLUMNS = (*COUNTERS, "return_mean", "length_mean")


class Metrics:
    """The metrics of a run, in memory and in metrics.csv.

    rows      [{name: number}], one dict per update; the last row may change until `write`
    columns   names of the first columns; a row with a new name adds a column
    """

    def __init__(self, folder, columns=COLUMNS):
        self.path, self.columns, self.rows = pathlib.Path(folder) / "metrics.csv", tuple(columns), []
        self.file, self.writer, self.n_written = None, None, 0

    def write(self):
        """Appends the new rows to the file."""
        new = self.rows[self.n_written :]
        if not self._file_is_there() or {name for row in new for name in row} - set(self.columns):
            self.write_anew()
            return
        with writing(self.path):
            self.writer.writerows(map(_formatted, new))
        self.n_written = len(self.rows)

    def _file_is_there(self):
        """False before the file is first written, and after somebody has deleted, renamed or replaced it."""
        try:
            return self.file is not None and os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno()))
        except FileNotFoundError:
            return False

    def write_anew(self):
        """Writes the whole file again."""
        self.close()
        self.columns = tuple(dict.fromkeys([*self.columns, *(name for row in self.rows for name in row)]))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(map(_formatted, self.rows))
        write_atomically(self.path, lambda file: file.write(text.getvalue().encode()))
        self.file, self.n_written = open(self.path, "a", newline="", buffering=1), len(self.rows)
        self.writer = csv.DictWriter(self.file, self.columns)

    def close(self):
        """Closes the file. The next `write` opens it again."""
        if self.file is not None:
            self.file.close()
            self.file = None


def rounded(x, beside=0.0):
    """A return as text: 478.6, 9.0, 4.72, 0.723. Beside a number of 10 or more, it has one decimal."""
    return f"{x:.1f}" if max(abs(x), abs(beside)) >= 10 or x == round(x, 1) else f"{x:.3g}"


def _formatted(row):
    return {name: f"{x:.6g}" if isinstance(x, float) else x for name, x in row.items()}


def read_metrics(folder):
    """Reads the rows of metrics.csv as dicts of numbers. Ignores empty cells and an incomplete last line."""
    return _read(folder)[0]


def _read(folder):
    """(rows, names of the columns)."""
    with open(pathlib.Path(folder) / "metrics.csv", newline="") as file:
        reader = csv.DictReader(file)
        rows, columns = list(reader), reader.fieldnames or COLUMNS
    complete = [row for row in rows if None not in row.values()]
    numbers = [
        {k: int(v) if k in COUNTERS[:3] or v.isdigit() else float(v) for k, v in row.items() if v not in ("", None)}
        for row in complete
    ]
    return numbers, columns


def metrics_until(folder, update):
    """Reads the `Metrics` of a run up to this update. RunError if metrics.csv is missing or damaged."""
    path = pathlib.Path(folder) / "metrics.csv"
    try:
        rows, columns = _read(folder)
        rows = [row for row in rows if row["update"] <= update]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise RunError(f"{path}: cannot be read: {error!r}") from None
    if [row["update"] for row in rows] != list(range(1, update + 1)):
        raise RunError(f"{path}: damaged: expected one row per update, from 1 to {update}")
    if any(set(COUNTERS) - row.keys() for row in rows):
        raise RunError(f"{path}: damaged: expected numbers in the columns {', '.join(COUNTERS)}")
    metrics = Metrics(folder, columns)
    metrics.rows = rows
    return metrics
