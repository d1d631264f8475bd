"""The `tfprune` command, kept apart from the package for the sake of a clean stderr.

TensorFlow writes to stderr while it is imported, whatever its log level, and importing
anything inside the package imports TensorFlow.
"""

import contextlib
import os
import sys


@contextlib.contextmanager
def quiet_tensorflow():
    """Silences what TensorFlow logs while it is imported in this block, and later."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as devnull:
            os.dup2(devnull.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def main():
    with quiet_tensorflow():
        from tfprune import cli
    return cli.main()
