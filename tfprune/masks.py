"""Masks: the one value every pruning method ends in."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np


class Masks(Mapping):
    """Which units of each group stay: group name to bool array, True = keep.

    Everything that happens after a decision (holding, compacting, counting,
    reporting) starts from this value. It is immutable and knows no model.

    Args:
        masks: Mapping of group name to bool array of shape `(group.size,)`.

    Raises:
        ValueError: if a name is not a string or an array is not 1-D bool.

    Example:

    >>> masks = Masks({"conv1": [True, False, True, True]})
    >>> masks.density()
    0.75
    """

    def __init__(self, masks: Mapping):
        if not isinstance(masks, Mapping):
            raise ValueError(
                "`masks` must be a mapping of group name to bool array, True = keep. "
                f"Received: {masks!r}"
            )
        self._masks = {name: _as_mask(name, mask) for name, mask in masks.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.keys() == other.keys() and all(
            np.array_equal(mask, other[name]) for name, mask in self.items()
        )

    __hash__ = None

    def __and__(self, other: Mapping) -> "Masks":
        """Keeps what both keep; a group that only one side names is taken as is."""
        merged = {**self, **other}
        for name in self.keys() & other.keys():
            if len(self[name]) != len(other[name]):
                raise ValueError(
                    f"Masks combined with `&` must agree in size. Received: "
                    f"{name!r} with {len(self[name])} and {len(other[name])} units."
                )
            merged[name] = self[name] & np.asarray(other[name], bool)
        return Masks(merged)

    def __repr__(self) -> str:
        kept = {name: f"{mask.sum()}/{mask.size}" for name, mask in self.items()}
        return f"Masks({kept})"

    def density(self) -> float:
        """Returns the fraction of all units that stay, in [0, 1]."""
        total = sum(mask.size for mask in self.values())
        return (
            float(sum(mask.sum() for mask in self.values()) / total) if total else 1.0
        )

    def save(self, path) -> None:
        """Writes the masks as one `.npz` file (aside first, then renamed).

        Args:
            path: file path, used as it is; parent directories must exist.
        """
        path = Path(path)
        names = np.array(list(self), dtype=np.str_)
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}."
        ) as room:
            aside = Path(room, "new.npz")
            np.savez_compressed(aside, names, *self.values())
            os.replace(aside, path)

    @classmethod
    def load(cls, path) -> "Masks":
        """Reads masks written by `save`.

        Raises:
            ValueError: if the file is not a masks file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                names = file["arr_0"].tolist()
                return cls({n: file[f"arr_{i}"] for i, n in enumerate(names, 1)})
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                f"`path` must be a file written by `Masks.save`. Received: {path} "
                f"({error})"
            ) from error


def _as_mask(name, mask) -> np.ndarray:
    if not isinstance(name, str):
        raise ValueError(f"Mask names must be strings. Received: {name!r}")
    try:
        array = np.array(mask)
    except ValueError:
        # Rows of different lengths.
        array = np.array(mask, object)
    if array.dtype != bool or array.ndim != 1 or array.size == 0:
        raise ValueError(
            "A mask must be a non-empty 1-D bool array, True = keep. "
            f"Received for {name!r}: shape {array.shape}, dtype {array.dtype}"
        )
    array.flags.writeable = False
    return array
