"""Files and directories that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

# Names that look like files, where a directory is to be written.
_FILES = {".keras", ".tflite", ".onnx", ".h5", ".hdf5", ".tfsparse"}


@contextlib.contextmanager
def write_aside(path, suffix, overwrite=False):
    """Yields a path to write to, which becomes `path` when the block ends well.

    Args:
        path: the file or directory wanted.
        suffix: what a file must end in; `""` for a directory.
        overwrite: bool. Whether what is there is replaced: a file by a file, a
            SavedModel by a SavedModel, and nothing else.

    Raises:
        ValueError: a path of another suffix.
        OSError: `path` exists, or its directory is missing or read-only.
    """
    path = Path(path)
    check_path(path, suffix, overwrite)
    room = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        aside = room / f"new{suffix}"
        yield aside
        _take_place(aside, path, room / "old")
    finally:
        shutil.rmtree(room, ignore_errors=True)


def check_path(path, suffix, overwrite=False):
    """Raises the error that writing `path` would meet, before any work is done."""
    path = Path(path)
    _check_suffix(path, suffix)
    parent = path.absolute().parent
    if not parent.is_dir():
        raise FileNotFoundError(
            f"`path` must lie in an existing directory. Received: path={path}. "
            f"Create {parent} first."
        )
    for place in (parent, path):
        if place.exists() and _is_read_only(place):
            raise PermissionError(
                f"`path` must be writable. Received: path={path}, and {place} is "
                "read-only. Choose another place or change its permissions."
            )
    if os.path.lexists(path):
        _check_replaceable(path, suffix, overwrite)


def _check_suffix(path, suffix):
    if path.suffix != suffix and (suffix or path.suffix in _FILES):
        wanted = f"end in {suffix}" if suffix else "name a directory"
        raise ValueError(f"`path` must {wanted} here. Received: path={path}.")


def _check_replaceable(path, suffix, overwrite):
    if not overwrite:
        raise FileExistsError(
            f"`path` must not exist. Received: path={path}. Choose another one or "
            "pass overwrite=True."
        )
    replaceable = path.is_file() if suffix else _is_saved_model(path)
    if not replaceable:
        kind = f"a {suffix} file" if suffix else "a SavedModel directory"
        raise FileExistsError(
            f"`overwrite=True` replaces {kind} by another, nothing else. Received: "
            f"path={path}. Remove it yourself or choose another one."
        )


def _is_read_only(path):
    # Root passes every access check; a place without any write bit is meant all the
    # same.
    return not os.access(path, os.W_OK) or not path.stat().st_mode & 0o222


def _is_saved_model(path):
    return path.is_dir() and (
        (path / "saved_model.pb").is_file() or not any(path.iterdir())
    )


def _take_place(aside, path, old):
    # A directory cannot be renamed onto a full one, hence the step to the side.
    replaced = path.is_dir()
    if replaced:
        path.rename(old)
    try:
        aside.replace(path)
    except OSError:
        if replaced:
            old.rename(path)
        raise
