"""Units: which channels of a traced model may go, and which only go together."""

import itertools

import numpy as np

from tfprune.graph.group import Group, Slice


class Units:
    """The units of a traced model, numbered, and the groups that they form.

    What is tied together is one unit. Those that may go have the numbers 0 to count - 1,
    and all that is kept has number `count`.

    Args:
        trace: the `Trace`.

    Attributes:
        count: number of units that may go.
        bindings: every labeled axis of every variable.
        groups: tuple of `Group`, in the order of the model's layers.
        members: for each group the numbers of its units.
    """

    def __init__(self, trace):
        self._atoms, self._calls = trace.atoms, trace.calls
        self.bindings = [b for b in trace.bindings.values() if b.labels is not None]
        self._reasons: dict[int, str] = {}
        self._of_atom, self.count = self._numbered(trace.locks)
        group_of = self._grouped()
        order = np.argsort(group_of, kind="stable")
        ends = np.cumsum(np.bincount(group_of))
        self.members = np.split(order, ends[:-1]) if len(ends) else []
        self.groups = self._make_groups(group_of)

    def of(self, labels: np.ndarray) -> np.ndarray:
        """Returns the unit number of each label; `count` where it is kept."""
        return self._of_atom[labels]

    def reasons(self, labels: np.ndarray) -> list[str | None]:
        """Returns why each label is kept; None for those that are free to go."""
        return [self._reasons.get(r) for r in self._atoms.root(labels).tolist()]

    def _numbered(self, locks) -> tuple[np.ndarray, int]:
        roots = self._atoms.root(np.arange(len(self._atoms)))
        for labels, reason in locks:
            for root in np.unique(roots[labels]).tolist():
                self._reasons.setdefault(root, reason)
        bare = np.zeros(len(roots), bool)
        bare[roots] = True
        free = bare.copy()
        for binding in self.bindings:
            bare[roots[binding.labels]] = False
        for root in np.flatnonzero(bare).tolist():
            self._reasons.setdefault(root, "zeros that no weights make or read")
        free[list(self._reasons)] = False
        heads = np.flatnonzero(free)
        number = np.full(len(roots), len(heads))
        number[heads] = np.arange(len(heads))
        return number[roots], len(heads)

    def _grouped(self) -> np.ndarray:
        """Returns the number of each unit's group: by their first units."""
        _, first, group_of = np.unique(
            self._signatures(), return_index=True, return_inverse=True
        )
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        return rank[group_of]

    def _signatures(self) -> np.ndarray:
        """Returns one number per unit, equal where units touch the same places.

        Places are axes of variables and of tensors, with multiplicity, so that in
        every place a group is cut evenly and no tensor loses all its channels
        while its group keeps some.
        """
        random = np.random.default_rng(0)
        signatures = np.zeros(self.count + 1, np.uint64)
        places = [binding.labels for binding in self.bindings]
        places += [labels for _, labels in self._axes()]
        keys = random.integers(0, 2**63, len(places), dtype=np.uint64)
        for key, labels in zip(keys, places, strict=True):
            np.add.at(signatures, self.of(labels), key)
        return signatures[:-1]

    def _axes(self):
        """Yields path and labels of every labeled axis of every tensor."""
        for call in self._calls:
            for tensor in call.outputs:
                for labels in tensor.labels:
                    if labels is not None:
                        yield call.path, labels

    def _make_groups(self, group_of) -> tuple[Group, ...]:
        slices, makers = self._slices(group_of), self._makers(group_of)
        names = unique_names([paths[0] for paths in makers])
        return tuple(
            Group(name, len(units), tuple(parts), paths)
            for name, units, parts, paths in zip(
                names, self.members, slices, makers, strict=True
            )
        )

    def _slices(self, group_of) -> list[list[Slice]]:
        group_of = np.append(group_of, len(self.members))
        slices = [[] for _ in self.members]
        for b in self.bindings:
            units = self.of(b.labels)
            order = np.argsort(units, kind="stable")
            groups = group_of[units[order]]
            for number in _numbers_in(groups):
                if number < len(slices):
                    own = order[groups == number]
                    indices = own.reshape(len(self.members[number]), -1)
                    slices[number].append(
                        Slice(b.path, b.variable, b.axis, indices, b.read)
                    )
        return slices

    def _makers(self, group_of) -> list[tuple[str, ...]]:
        """Returns per group the paths of the layers that make or carry its units."""
        group_of = np.append(group_of, len(self.members))
        paths = [{} for _ in range(len(self.members) + 1)]
        made = {}
        for b in self.bindings:
            if not b.read:
                made.setdefault(b.path, []).append(b.labels)
        for call in self._calls:
            for labels in made.get(call.path, ()):
                for number in _numbers_in(group_of[self.of(labels)]):
                    paths[number][call.path] = None
        for path, labels in self._axes():
            for number in _numbers_in(group_of[self.of(labels)]):
                if not paths[number]:
                    paths[number][path] = None
        return [tuple(each) for each in paths[:-1]]


def unique_names(names: list[str]) -> list[str]:
    """Returns the names, those that came before with a number behind them."""
    taken, unique = set(names), []
    for place, name in enumerate(names):
        free = (f"{name}:{number}" for number in itertools.count(1))
        is_first = name not in names[:place]
        unique.append(name if is_first else next(n for n in free if n not in taken))
        taken.add(unique[-1])
    return unique


def _numbers_in(array: np.ndarray) -> list[int]:
    """Returns the distinct small numbers of an array, sorted; quicker than `unique`."""
    return np.flatnonzero(np.bincount(array)).tolist()
