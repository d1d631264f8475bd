"""Path patterns: how layers and groups are named."""

import fnmatch
from collections.abc import Iterable


def matches(path: str, pattern: str) -> bool:
    """Returns whether a path is what a pattern says, or fits its `*` and `?`."""
    return path == pattern or fnmatch.fnmatchcase(path, pattern)


def as_patterns(argument: str, patterns) -> list[str]:
    """Returns one pattern or several as a list.

    Args:
        argument: name of the argument, for the error.
        patterns: str, or list of them.

    Raises:
        ValueError: if they are something else, or none.
    """
    is_one = isinstance(patterns, str) or not isinstance(patterns, Iterable)
    found = [patterns] if is_one else list(patterns)
    if not found or not all(isinstance(each, str) for each in found):
        raise ValueError(
            f"`{argument}` must be a path pattern such as 'stage1/*', or a list of "
            f"them. Received: {argument}={patterns!r}"
        )
    return found
