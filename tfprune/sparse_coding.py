"""Arrays without their zeros, as bytes.

The places of what is not zero are coded as gaps, each as a Golomb-Rice code: the gap's
leading bits as so many zeros and a one, its last bits as they are. For zeros spread by
chance that takes a few percent more than the entropy. Values are laid out byte by byte,
all first bytes, then all second ones, so that signs and exponents compress.
"""

import dataclasses

import numpy as np

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def patterns(array: np.ndarray) -> np.ndarray:
    """Returns the bits of an array as unsigned ints, flat: 0 is +0 and nothing else."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(_UNSIGNED[flat.dtype.itemsize])


@dataclasses.dataclass(frozen=True)
class Places:
    """Where some of `size` entries stand.

    Attributes:
        size: number of entries.
        count: number of those that stand.
        last_bits: how many of a gap's bits are written as they are.
        code: bytes; empty where all entries stand.
    """

    size: int
    count: int
    last_bits: int
    code: bytes

    @classmethod
    def of(cls, flags: np.ndarray) -> "Places":
        """Returns the places of True, 1-D."""
        indices = np.flatnonzero(flags)
        if len(indices) == flags.size:
            return cls(flags.size, flags.size, 0, b"")
        gaps = np.diff(indices, prepend=-1) - 1
        last_bits = _best_last_bits(gaps)
        ones = np.cumsum((gaps >> last_bits) + 1) - 1
        leading = np.zeros(ones[-1] + 1 if len(ones) else 0, bool)
        leading[ones] = True
        shifts = np.arange(last_bits, dtype=gaps.dtype)
        following = (gaps[:, None] >> shifts) & 1
        code = np.packbits(leading).tobytes()
        code += np.packbits(following.astype(bool)).tobytes()
        return cls(flags.size, len(indices), last_bits, code)

    def indices(self) -> np.ndarray:
        """Returns the places, in order."""
        if self.count == self.size:
            return np.arange(self.size)
        bits = np.unpackbits(np.frombuffer(self.code, np.uint8)).astype(bool)
        ones = np.flatnonzero(bits)[: self.count]
        gaps = (np.diff(ones, prepend=-1) - 1) << self.last_bits
        start = -(-(ones[-1] + 1) // 8) * 8 if self.count else 0
        following = bits[start : start + self.count * self.last_bits]
        shifts = np.arange(self.last_bits, dtype=gaps.dtype)
        gaps += (following.reshape(self.count, self.last_bits) << shifts).sum(
            1, dtype=gaps.dtype
        )
        return np.cumsum(gaps + 1) - 1


def _best_last_bits(gaps: np.ndarray) -> int:
    """Returns the number of last bits that makes the code shortest."""
    total, count = int(gaps.sum()), max(1, gaps.size)
    guess = max(0, (total // count).bit_length() - 1)
    candidates = range(max(0, guess - 2), guess + 3)
    return min(candidates, key=lambda n: int((gaps >> n).sum()) + n * gaps.size)


def planes(values: np.ndarray) -> list[bytes]:
    """Returns the first bytes of all values, then the second ones, and so on."""
    rows = np.ascontiguousarray(values).view(np.uint8)
    return [plane.tobytes() for plane in rows.reshape(-1, values.dtype.itemsize).T]


def from_planes(parts: list[bytes], dtype) -> np.ndarray:
    """Returns the values that `planes` has laid out."""
    rows = np.array([np.frombuffer(part, np.uint8) for part in parts])
    return np.ascontiguousarray(rows.T).view(dtype).reshape(-1)
