"""Union-find over integer labels, vectorized."""

import numpy as np


class Atoms:
    """Labels of channels and which of them are tied together."""

    def __init__(self):
        self._parent = np.empty(1024, np.int64)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def new(self, count: int) -> np.ndarray:
        """Returns `count` labels that are tied to nothing yet."""
        while self._size + count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.empty_like(self._parent)])
        labels = np.arange(self._size, self._size + count)
        self._parent[labels] = labels
        self._size += count
        return labels

    def root(self, labels: np.ndarray) -> np.ndarray:
        """Returns the representative of each label: equal for tied labels."""
        while True:
            parents = self._parent[labels]
            if np.array_equal(parents, labels):
                return labels
            labels = parents

    def tie(self, left: np.ndarray, right: np.ndarray) -> None:
        """Ties `left[i]` to `right[i]` for every i."""
        left, right = self.root(left), self.root(right)
        while not np.array_equal(left, right):
            low, high = np.minimum(left, right), np.maximum(left, right)
            # One root may meet several partners in one call: the smallest wins now,
            # the others are tied in the next round.
            np.minimum.at(self._parent, high, low)
            left, right = self.root(low), self.root(high)
        self._shorten(left)

    def _shorten(self, labels: np.ndarray) -> None:
        self._parent[labels] = self.root(labels)
