"""What Keras writes to a `.keras` file, taken apart and put together again."""

import io
import json
import tempfile
import zipfile
from pathlib import Path

import h5py
import numpy as np

_WEIGHTS = "model.weights.h5"
_CONFIG = "config.json"


def take_apart(model, include_optimizer: bool) -> tuple[dict, dict, dict]:
    """Returns `(files, groups, arrays)` of the `.keras` file of a model.

    Returns:
        `{name: bytes}` of all but the weights; `{path: attributes}` of groups and
        arrays in the file of weights; `{path: array}`.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.keras"
        model.save(path)
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    groups, arrays = {}, {}

    def visit(name, item):
        if not include_optimizer and name.split("/")[0] == "optimizer":
            return
        attributes = {key: _plain(value, name) for key, value in item.attrs.items()}
        groups[name] = attributes
        if isinstance(item, h5py.Dataset):
            arrays[name] = _checked(np.asarray(item), name)

    with h5py.File(io.BytesIO(files.pop(_WEIGHTS))) as weights:
        weights.visititems(visit)
    config = json.loads(files[_CONFIG])
    if not include_optimizer:
        config["compile_config"] = None
    files[_CONFIG] = json.dumps(config, separators=(",", ":")).encode()
    return files, groups, arrays


def _plain(value, name):
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, (str, int, float, bool)):
        return value
    raise ValueError(
        f"{name!r} in the model's weights has an attribute that cannot be written: "
        f"{value!r}. Save the model with `model.save`."
    )


def _checked(array, name) -> np.ndarray:
    if array.dtype.kind in "biufcV" and array.dtype.itemsize in (1, 2, 4, 8):
        return array
    raise ValueError(
        f"{name!r} in the model's weights is of type {array.dtype}, which cannot be "
        "written. Save the model with `model.save`."
    )


def _as_h5(groups: dict, arrays: dict) -> bytes:
    with io.BytesIO() as stream:
        with h5py.File(stream, "w") as file:
            for name, attributes in groups.items():
                is_array = name in arrays
                item = (
                    file.create_dataset(name, data=arrays[name])
                    if is_array
                    else file.require_group(name)
                )
                item.attrs.update(attributes)
        return stream.getvalue()


def put_together(files: dict, groups: dict, arrays: dict) -> bytes:
    """Returns the content of a `.keras` file from what `take_apart` returns."""
    with io.BytesIO() as stream:
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
            archive.writestr(_WEIGHTS, _as_h5(groups, arrays))
        return stream.getvalue()
