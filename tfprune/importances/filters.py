"""What the importances that read filters share."""

import abc

import numpy as np

from tfprune.graph import Graph, Group
from tfprune.reading import shared_array


class FilterImportance(abc.ABC):
    """Base of importances that score a unit by the filters that make it.

    A filter is all the weights of one kernel that make one unit. A kernel's scores are
    divided by their mean, so that layers of different scale can be ranked together; a
    group's are the mean over the kernels that make its units.

    Args:
        normalize: whether to divide by the mean.
    """

    def __init__(self, normalize: bool = True):
        self.normalize = normalize

    @abc.abstractmethod
    def of_filters(self, filters: np.ndarray) -> np.ndarray:
        """Returns a score for each filter of a kernel.

        Args:
            filters: float32 array of shape `(filters, weights of each)`.
        """

    def __call__(self, graph: Graph) -> dict[str, np.ndarray]:
        scored: dict = {}
        return {group.name: self._score(group, scored) for group in graph.groups}

    def _score(self, group: Group, scored: dict) -> np.ndarray:
        scores = [
            self._of_kernel(each, scored)[each.indices].mean(axis=1)
            for each in _makers(group)
        ]
        if not scores:
            # Channels of padding: no weight makes them, so nothing is lost with them.
            return np.zeros(group.size, np.float32)
        return np.mean(scores, axis=0, dtype=np.float32)

    def _of_kernel(self, part, scored: dict) -> np.ndarray:
        """Returns the score at every position of the part's axis, once per variable."""
        key = (id(part.variable), part.axis)
        if key not in scored:
            filters = np.moveaxis(shared_array(part.variable), part.axis, 0)
            filters = filters.reshape(len(filters), -1).astype(np.float32, copy=False)
            scores = self.of_filters(filters)
            if not np.isfinite(scores).all():
                raise ValueError(
                    f"Layer {part.path!r} has weights that are NaN or infinite, in "
                    f"{part.variable.name!r}. Look for where training went wrong."
                )
            mean = scores.mean()
            scored[key] = scores / mean if self.normalize and mean > 0 else scores
        return scored[key]


def _makers(group: Group) -> list:
    """Returns the slices whose weights make the units: kernels, else what there is."""
    made = [part for part in group.slices if not part.read]
    kernels = [part for part in made if len(part.variable.shape) > 1]
    return kernels or made
