"""Tables for people: rich renderables made from what the rest of the package returns.

Nothing here prints, and rich is imported where it is used, so that importing tfprune
does not wait for it.
"""

import dataclasses
from pathlib import Path

from tfprune import costs


@dataclasses.dataclass(frozen=True)
class Measurements:
    """What is known of one model; what was not measured is left out of the table.

    Attributes:
        params: int.
        macs: int. Multiply-accumulates for one sample.
        file_bytes: int.
        latency: float. Milliseconds.
        accuracy: float, in [0, 1].
    """

    params: int | None = None
    macs: int | None = None
    file_bytes: int | None = None
    latency: float | None = None
    accuracy: float | None = None


def inspect_table(graph, title=None):
    """Makes the table of a model's layers: sizes, costs, coupling, and what is locked.

    Args:
        graph: a `Graph`.
        title: str. Defaults to the model's name.

    Returns:
        A `rich.table.Table`, one row per layer in call order.
    """
    cost = costs.cost(graph)
    groups = _groups_by_layer(graph)
    caption = _plain(
        f"{cost.params:,} parameters, {cost.macs:,} multiply-accumulates\n"
        f"{sum(group.size for group in graph.groups):,} prunable channels "
        f"in {len(graph.groups)} groups\n" + "\n".join(graph.free_channels.describe())
    )
    table = _table(
        title or graph.model.name,
        ("layer", "type", "output shape", "params", "MACs", "group", "coupled to")
        + ("keeps its channels because",),
        numbers=("params", "MACs"),
        caption=caption,
    )
    for layer in cost.layers:
        own = groups.get(layer.path, ())
        _add_row(
            table,
            layer.path,
            layer.type,
            _shape(layer.output_shape),
            _count(layer.params),
            "not counted" if layer.path in cost.uncounted else _count(layer.macs),
            "\n".join(f"{group.name} ({group.size})" for group in own),
            _coupled(layer.path, own),
            _reason(graph, layer.path),
        )
    return table


def comparison_table(before, after, speedup=None, title=None):
    """Makes the table of a model before and after pruning.

    Args:
        before: `Measurements` of the dense model.
        after: `Measurements` of the pruned one.
        speedup: float. The ratio of the latencies where it was measured better than
            as the ratio of the two medians, as `benchmark` does.
        title: str.

    Returns:
        A `rich.table.Table`, one row per quantity that both sides have.
    """
    table = _table(title, ("", "before", "after", "change"), numbers=True)
    for name, label, form, change in _QUANTITIES:
        old, new = getattr(before, name), getattr(after, name)
        if old is None or new is None:
            continue
        ratio = change(old, new)
        if name == "latency" and speedup is not None:
            ratio = _faster(speedup)
        _add_row(table, label, form(old), form(new), ratio)
    return table


def benchmark_table(result):
    """Makes the table of a `Benchmark`: medians, quartiles and speed-ups."""
    table = _table(
        None,
        ("model", "median", "quartiles", "speed-up"),
        numbers=("median", "quartiles", "speed-up"),
        caption=f"batch {result.batch_size}, {result.rounds} interleaved rounds, "
        f"{result.threads}",
    )
    for row in result.rows:
        _add_row(
            table,
            row.name,
            f"{row.median:.2f} ms",
            f"{row.lower:.2f} – {row.upper:.2f} ms",
            f"{row.speedup:.2f}x",
        )
    return table


def file_size(size):
    """Formats a number of bytes: `1536` as `"1.5 KiB"`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.1f} {unit}" if unit != "B" else f"{size} B"
        size /= 1024
    return f"{size:,.1f} GiB"


def bytes_on_disk(path):
    """Returns the bytes of a file, or of all files in a directory."""
    path = Path(path)
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _reduction(old, new):
    return f"{100 * (new / old - 1):+.1f} %" if old else ""


def _faster(speedup):
    return f"{speedup:.2f}x faster"


def _speedup(old, new):
    return _faster(old / new)


def _points(old, new):
    return f"{100 * (new - old):+.2f} points"


_QUANTITIES = (
    ("params", "parameters", "{:,}".format, _reduction),
    ("macs", "multiply-accumulates", "{:,}".format, _reduction),
    ("file_bytes", "file size", file_size, _reduction),
    ("latency", "latency", "{:.2f} ms".format, _speedup),
    ("accuracy", "test accuracy", "{:.2%}".format, _points),
)


def _table(title, columns, numbers=(), caption=None):
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, caption_justify="left"
    )
    for i, column in enumerate(columns):
        right = i > 0 if numbers is True else column in numbers
        table.add_column(column, justify="right" if right else "left")
    return table


def _add_row(table, *cells):
    table.add_row(*map(_plain, cells))


def _plain(text):
    """Names and reasons are not markup, whatever brackets they contain."""
    from rich.text import Text

    return Text(text)


def _groups_by_layer(graph):
    groups = {}
    for group in graph.groups:
        for path in group.layers:
            groups.setdefault(path, []).append(group)
    return groups


def _coupled(path, groups, shown=2):
    """Names the other layers whose kernels lose the same channels."""
    others = dict.fromkeys(
        part.path
        for group in groups
        for part in group.slices
        if not part.read and len(part.variable.shape) > 1 and part.path != path
    )
    more = [f"and {len(others) - shown} more"] if len(others) > shown else []
    return "\n".join(list(others)[:shown] + more)


def _reason(graph, path):
    reasons = (graph.skipped, graph.locked, graph.unequal)
    return next((each[path] for each in reasons if path in each), "")


def _count(number):
    return f"{number:,}" if number else ""


def _shape(shape):
    if shape is None:
        return ""
    return " x ".join("?" if size is None else str(size) for size in shape)
