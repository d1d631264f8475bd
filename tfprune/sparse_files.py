"""Files as small as the zeros of a model allow.

A `.keras` file is taken apart, and its arrays are written without their zeros: where
the others stand as Golomb-Rice coded gaps, which comes within a few percent of the
entropy, and the values byte by byte, so that signs and exponents compress. zstandard
does the rest. Loading puts the `.keras` file together again, so everything that Keras
saves comes back, bit by bit.
"""

import gzip
import hashlib
import json
import math
import tempfile
import typing
from pathlib import Path

import keras
import numpy as np
import zstandard

from tfprune import sparse_coding
from tfprune.keras_archives import put_together, take_apart
from tfprune.sparse_coding import Places
from tfprune.writing import write_aside

_SUFFIX = ".tfsparse"
_MAGIC = b"tfsparse"
_VERSION = 1
_DIGEST = 8


def save_sparse(
    model, path, dtype=None, include_optimizer=False, overwrite=False
) -> Path:
    """Writes a model to one file without its zeros.

    For sparse models such as `tfprune.strip` returns after pruning with masks. Every
    array is written in the smaller form, so a dense model is not larger than in a
    `.keras` file.

    Args:
        model: a Keras model that `model.save` can save.
        path: str or `pathlib.Path` that ends in `.tfsparse`.
        dtype: `"float16"` to round the values of floating-point arrays to it, which
            come back in their own type. By default all bits are kept.
        include_optimizer: bool. Whether to keep the state of training, too.
        overwrite: bool. Whether a file at `path` is replaced.

    Returns:
        The path written, a `pathlib.Path`.

    Raises:
        ValueError: for no model, another suffix or `dtype`, or values that float16
            cannot hold.
        OSError: `path` exists, or cannot be written.

    Example:

    ```python
    tfprune.save_sparse(tfprune.strip(sparse), "model.tfsparse")
    model = tfprune.load_sparse("model.tfsparse")
    ```
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"`model` must be a Keras 3 model. Received: {model!r} (of type "
            f"{type(model).__name__})"
        )
    if dtype not in (None, "float16"):
        raise ValueError(
            f'`dtype` must be None or "float16". Received: dtype={dtype!r}'
        )
    with write_aside(path, _SUFFIX, overwrite) as aside:
        files, groups, arrays = take_apart(model, include_optimizer)
        content = _packed(files, groups, arrays, dtype)
        if dtype is None:
            _check_equal(arrays, _unpacked(content, path)[2])
        aside.write_bytes(content)
    return Path(path)


def load_sparse(path, custom_objects=None, safe_mode=True) -> keras.Model:
    """Returns the model in a file of `save_sparse`.

    Args:
        path: str or `pathlib.Path`.
        custom_objects: as in `keras.saving.load_model`.
        safe_mode: as in `keras.saving.load_model`.

    Raises:
        ValueError: if the file is none of `save_sparse`, cut off or damaged.
        OSError: if it cannot be read.

    Example:

    ```python
    tfprune.save_sparse(model, "model.tfsparse")
    model = tfprune.load_sparse("model.tfsparse")
    ```
    """
    files, groups, arrays = _unpacked(Path(path).read_bytes(), path)
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "model.keras"
        archive.write_bytes(put_together(files, groups, arrays))
        return keras.saving.load_model(
            archive, custom_objects=custom_objects, safe_mode=safe_mode
        )


def file_sizes(model) -> dict[str, int]:
    """Returns the bytes that a model takes in files of several kinds, and the least.

    Args:
        model: a Keras model.

    Returns:
        `{kind: bytes}`: `"keras"`, without optimizer; `"keras, gzip"`; `"tfsparse"` and
        `"tfsparse, float16"`; and `"entropy bound"`: for each array log2 of the number
        of ways to place its zeros, and the bits of its other values.

    Example:

    >>> tfprune.sparse_files.file_sizes(sparse)
    {'keras': ..., 'keras, gzip': ..., 'tfsparse': ..., ...}
    """
    files, groups, arrays = take_apart(model, include_optimizer=False)
    dense = put_together(files, groups, arrays)
    return {
        "keras": len(dense),
        "keras, gzip": len(gzip.compress(dense, 9)),
        "tfsparse": len(_packed(files, groups, arrays, None)),
        "tfsparse, float16": len(_packed(files, groups, arrays, "float16")),
        "entropy bound": math.ceil(sum(map(_entropy, arrays.values())) / 8),
    }


def _entropy(array) -> float:
    """Returns the bits that the places and values of an array take at least."""
    size, count = array.size, int(np.count_nonzero(sparse_coding.patterns(array)))
    ways = math.lgamma(size + 1) - math.lgamma(count + 1)
    ways -= math.lgamma(size - count + 1)
    return ways / math.log(2) + 8 * array.itemsize * count


def _check_equal(arrays: dict, others: dict) -> None:
    for name, array in arrays.items():
        if not np.array_equal(
            sparse_coding.patterns(array), sparse_coding.patterns(others[name])
        ):
            raise ValueError(
                f"{name!r} would not come back as it is. Nothing was written. Please "
                "report this with the model."
            )


# The file -----------------------------------------------------------------------------


def _packed(files: dict, groups: dict, arrays: dict, dtype) -> bytes:
    """Returns the content of a file: magic, version, digest, header, sections.

    The sections are the places of all arrays and, for each type of values, their first
    bytes, their second bytes and so on.
    """
    records, places, values = {}, [], {}
    for name, array in arrays.items():
        stored = _as_stored(array, dtype, name)
        found = _places(stored)
        places.append(found.code)
        values.setdefault(stored.dtype.str, []).append(_kept(stored, found))
        records[name] = [
            array.dtype.str,
            stored.dtype.str,
            array.shape,
            found.count,
            found.last_bits,
            len(found.code),
        ]
    sections = [b"".join(places)]
    for parts in values.values():
        sections += sparse_coding.planes(np.concatenate(parts))
    sections = [_compressed(section) for section in sections]
    header = {
        "files": {name: content.decode("latin-1") for name, content in files.items()},
        "groups": {name: own for name, own in groups.items() if own},
        "arrays": records,
        "empty": [name for name in groups if name not in arrays],
        "sections": [len(section) for section in sections],
    }
    head = _compressed(json.dumps(header, separators=(",", ":")).encode())
    body = b"".join([len(head).to_bytes(4, "little"), head, *sections])
    return _MAGIC + bytes([_VERSION]) + _digest(body) + body


def _unpacked(content: bytes, path) -> tuple[dict, dict, dict]:
    """Returns `(files, groups, arrays)` from the content of a file."""
    body = _checked_body(content, path)
    length = int.from_bytes(body[:4], "little")
    header = json.loads(_decompressed(body[4 : 4 + length]))
    sections, start = [], 4 + length
    for length in header["sections"]:
        sections.append(_decompressed(body[start : start + length]))
        start += length
    records = {name: _Record(*fields) for name, fields in header["arrays"].items()}
    arrays = dict(_arrays(records, sections))
    own = header["groups"]
    groups = {name: own.get(name, {}) for name in (*header["empty"], *arrays)}
    files = {name: text.encode("latin-1") for name, text in header["files"].items()}
    return files, groups, arrays


class _Record(typing.NamedTuple):
    """What the header says of an array."""

    dtype: str
    stored: str
    shape: list
    count: int
    last_bits: int
    code_length: int


def _arrays(records: dict, sections: list):
    """Yields the name and value of each array."""
    codes, *planes = sections
    values = {}
    for stored in dict.fromkeys(record.stored for record in records.values()):
        number = np.dtype(stored).itemsize
        values[stored] = sparse_coding.from_planes(planes[:number], stored)
        planes = planes[number:]
    read, taken = 0, dict.fromkeys(values, 0)
    for name, record in records.items():
        code = codes[read : read + record.code_length]
        read += record.code_length
        size = math.prod(record.shape)
        places = Places(size, record.count, record.last_bits, code)
        start = taken[record.stored]
        taken[record.stored] += record.count
        array = np.zeros(size, record.stored)
        array[places.indices()] = values[record.stored][start : start + record.count]
        yield name, array.astype(record.dtype).reshape(record.shape)


def _as_stored(array, dtype, name) -> np.ndarray:
    if dtype is None or array.dtype.kind != "f" or array.dtype.itemsize <= 2:
        return array
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    lost = np.isinf(stored) & ~np.isinf(array)
    if lost.any():
        raise ValueError(
            f"`dtype` cannot hold the values of {name!r}, which go up to "
            f"{np.abs(array[lost]).max():.3g}. Received: dtype={dtype!r}. Save without it."
        )
    return stored


def _places(array) -> Places:
    """Returns where an array is not zero, or all places if that is smaller."""
    places = Places.of(sparse_coding.patterns(array) != 0)
    left_out = (places.size - places.count) * array.dtype.itemsize
    everywhere = Places(places.size, places.size, 0, b"")
    return places if len(places.code) < left_out else everywhere


def _kept(array, places: Places) -> np.ndarray:
    return array.reshape(-1)[places.indices()]


def _checked_body(content: bytes, path) -> bytes:
    start = len(_MAGIC) + 1 + _DIGEST
    if content[: len(_MAGIC)] != _MAGIC:
        raise ValueError(
            "`path` must be a file that `tfprune.save_sparse` has written, but does not "
            f"begin so. Received: path={path}"
        )
    version = content[len(_MAGIC) : len(_MAGIC) + 1]
    if version != bytes([_VERSION]):
        raise ValueError(
            f"The file was written by another version of tfprune. Received: path={path}"
            f", format {version.hex()}, and this one reads {_VERSION:02x}. Update it."
        )
    body = content[start:]
    if _digest(body) != content[len(_MAGIC) + 1 : start]:
        raise ValueError(
            f"The file is damaged or cut off: its content does not match its digest. "
            f"Received: path={path} of {len(content)} bytes. Copy or write it again."
        )
    return body


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST).digest()


def _compressed(content: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor(level=19, write_content_size=True)
    return compressor.compress(content)


def _decompressed(content: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(content)
