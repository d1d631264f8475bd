"""Published numbers, printed beside our own: python benchmarks/published.py ResNet-56

Every row of published.json names where it was printed. `pruned` and `baseline` are in
the unit of `metric`; a `flops_reduction` of null means that the source gives another
measure, which is in `note`.
"""

import json
import sys
from pathlib import Path

PATH = Path(__file__).with_name("published.json")


def rows(network=None):
    """Returns the published rows, those of one network if it is named."""
    everything = json.loads(PATH.read_text(encoding="utf-8"))
    return [row for row in everything if network in (None, row["network"])]


def table(network):
    """Returns the published rows of a network as a rich table, sources below it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    selected = rows(network)
    if not selected:
        names = ", ".join(sorted({row["network"] for row in rows()}))
        raise ValueError(
            f"`network` must be one that published.json knows: {names}. "
            f"Received: network={network!r}."
        )
    selected.sort(key=lambda row: row["flops_reduction"] or 0)
    sources = list(dict.fromkeys(row["source"] for row in selected))
    measured = {f"{row['dataset']}, {row['metric']}" for row in selected}
    result = Table(
        title=f"Published: {network}, {'; '.join(sorted(measured))}",
        caption=Text("\n".join(f"({i}) {s}" for i, s in enumerate(sources, 1))),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in ("method", "note", "FLOPs", "before", "pruned", "source"):
        numeric = column in ("FLOPs", "before", "pruned")
        result.add_column(column, justify="right" if numeric else "left")
    for row in selected:
        result.add_row(*map(Text, _cells(row, sources)))
    return result


def _cells(row, sources):
    reduction, baseline = row["flops_reduction"], row["baseline"]
    return (
        row["method"],
        row.get("note", ""),
        "" if reduction is None else f"-{reduction:.1%}",
        "" if baseline is None else f"{baseline:.2f}",
        f"{row['pruned']:.2f}",
        f"({sources.index(row['source']) + 1})",
    )


def main():
    from rich.console import Console

    networks = sys.argv[1:] or sorted({row["network"] for row in rows()})
    for network in networks:
        try:
            Console().print(table(network))
        except ValueError as error:
            sys.exit(f"published.py: error: {error}")


if __name__ == "__main__":
    main()
