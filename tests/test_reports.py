"""Tables say what the data say."""

import pytest
from rich.console import Console

import tfprune
from tfprune import benchmarking, reports


def text(table, width=200):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def row(table, name):
    """The cells of the first line that starts with `name`."""
    lines = (line.strip() for line in text(table).splitlines())
    return next(line for line in lines if line.startswith(name)).split("  ")


def test_inspect_shows_sizes_costs_coupling_and_reasons(make_residual):
    table = reports.inspect_table(tfprune.Graph(make_residual()))
    stem = [cell.strip() for cell in row(table, "stem_conv") if cell.strip()]
    # 8x8 outputs, 3x3 kernels, 3 channels to 8.
    assert stem[1:5] == ["Conv2D", "? x 8 x 8 x 8", "216", "13,824"]
    assert stem[5] == "stem_conv (8)"
    logits = " ".join(row(table, "logits"))
    assert "output" in logits
    assert "prunable channels in" in text(table)
    # 4 convolutions, the shortcut's, and 3 logits that stay.
    assert "72 of 75 kernel channels are free to go (96.0%)" in text(table)
    assert "3 kept: an output of the model" in text(table)


def test_inspect_lists_every_layer_and_what_it_is_coupled_to(make_residual):
    graph = tfprune.Graph(make_residual())
    table = reports.inspect_table(graph)
    assert all(path in text(table) for path in graph.layers)
    assert "block1_b_conv" in row(table, "stem_conv")
    first = graph.group("stem_conv")
    assert reports._coupled("stem_conv", [first]) == "block1_b_conv"
    assert reports._coupled("elsewhere", [first], shown=1) == "stem_conv\nand 1 more"


def test_names_are_not_markup(make_vgg):
    model = make_vgg()
    table = reports.inspect_table(tfprune.Graph(model), title="plain")
    reports._add_row(table, "conv[bold]1", *[""] * 7)
    assert "conv[bold]1" in text(table)


def test_comparison_shows_changes_and_leaves_out_what_is_unknown():
    before = reports.Measurements(1000, 4_000_000, 3 * 2**20, 8.0, 0.99)
    after = reports.Measurements(400, 1_000_000, 2**20, 4.0, 0.98)
    lines = text(reports.comparison_table(before, after))
    for cell in ("1,000", "-60.0 %", "4,000,000", "-75.0 %", "3.0 MiB", "2.00x faster"):
        assert cell in lines
    assert "99.00%" in lines and "-1.00 points" in lines

    lines = text(reports.comparison_table(before, after, speedup=1.9))
    assert "1.90x faster" in lines and "2.00x" not in lines
    lines = text(reports.comparison_table(before, reports.Measurements(params=400)))
    assert "accuracy" not in lines and "file size" not in lines
    nothing = reports.Measurements(10, 0)
    assert "multiply-accumulates" in text(reports.comparison_table(nothing, nothing))


def test_benchmark_table():
    rows = (
        benchmarking.Latency("dense", 8.0, 7.0, 9.0, 1.0),
        benchmarking.Latency("small", 4.0, 3.0, 5.0, 2.0),
    )
    result = benchmarking.Benchmark(rows, 64, 30, "2 cores")
    lines = text(result.table())
    assert "8.00 ms" in lines and "3.00 – 5.00 ms" in lines and "2.00x" in lines
    assert "batch 64, 30 interleaved rounds, 2 cores" in lines


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB")],
)
def test_file_size(size, expected):
    assert reports.file_size(size) == expected


def test_bytes_on_disk(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_bytes(b"4567")
    assert reports.bytes_on_disk(tmp_path) == 7
    assert reports.bytes_on_disk(tmp_path / "a") == 3
