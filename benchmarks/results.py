"""The file that finished runs go to: a benchmark that was stopped goes on from it."""

import json
import sys
from pathlib import Path


class Results:
    """Finished runs, a line of JSON each.

    Args:
        path: the file.
    """

    def __init__(self, path):
        self._path = Path(path)
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def find(self, **keys):
        """Returns the run with these entries, None if there is none."""
        rows = (r for r in self.rows if all(r[k] == v for k, v in keys.items()))
        return next(rows, None)

    def add(self, row):
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), file=sys.stderr, flush=True)
