"""The structural engine over keras.applications, a row a model, and its limits.

    python benchmarks/zoo.py [--only NAME ...] [--peer torch-pruning]

Half of the multiply-accumulates go, 96 px, widths in multiples of 8. Every model has a
process of its own, so that its memory and its first trace are its own. All weights are
random, also the statistics, so that an error would show. Half an hour on two cores;
finished models go to the file of --results, and are not measured again.
"""

import argparse
import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import architectures
import checker
import keras
import numpy as np
import peers
import structure
import timing
from results import Results

import tfprune
from tfprune import benchmarking
from tfprune.surgery import certificate
from tfprune.surgery.compact import compact_unverified
from tfprune.surgery.mask import zeroed_values

SIZE, BATCH_SIZE, MEGABYTE = 96, 8, 2**20
# Promised for these four: how many times faster half of the work is.
SPEEDUPS = {"ResNet50": 2.0, "VGG16": 1.7, "MobileNetV2": 1.5, "DenseNet121": 1.5}
SECONDS_PER_MODEL = 30


def measure(name):
    """Measures one application; returns what its row says, as plain numbers."""
    model = checker.randomize(architectures.application(name, SIZE))
    graph, trace = _timed(lambda: tfprune.Graph(model))
    budget = tfprune.Budget(flops_reduction=0.5, multiple_of=8)
    masks, select = _timed(
        lambda: tfprune.select(graph, "magnitude", budget, scope="uniform")
    )
    small, peak = _peak(lambda: compact_unverified(graph, masks))
    before, after = tfprune.cost(graph), tfprune.cost(small)
    assert after == tfprune.cost(graph, masks)
    return {
        "name": name,
        "params": before.params,
        "macs": before.macs,
        "left": after.macs / before.macs,
        "groups": len(graph.groups),
        "free": graph.free_channels.share,
        "kept": next(iter(graph.free_channels.reasons), ""),
        "trace": trace,
        "select": select,
        "new": _bytes(small) / MEGABYTE,
        "old": _bytes(model) / MEGABYTE,
        "peak": None if peak is None else peak / MEGABYTE,
        "error": _error(model, graph, masks, small),
        **_rebuilding(model, graph, masks),
        **_latencies(model, small),
    }


def _timed(function):
    """Returns what a function returns, and the CPU seconds it took at its first call."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def _bytes(model):
    return sum(variable.value.numpy().nbytes for variable in model.variables)


def _peak(function):
    """Returns what a function returns, and by how many bytes memory grew at most.

    None where the system cannot tell: it takes the /proc of Linux.
    """
    gc.collect()
    with contextlib.suppress(OSError):
        # What was freed before must not hide what is taken now.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _memory("VmRSS")
    except OSError:
        return function(), None
    result = function()
    return result, _memory("VmHWM") - before


def _memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(field))
    return 1024 * int(line.split()[1])


def _error(model, graph, masks, small):
    values = zeroed_values(graph, masks)
    probes, expected = certificate.finite_probe(model, values)
    received = certificate.run(small, probes)
    return certificate.max_relative_error(expected, received)


def _rebuilding(model, graph, masks):
    """Times compact, certificate apart, beside cloning the model, in CPU seconds."""

    def clone():
        keras.models.clone_model(model).set_weights(model.get_weights())

    def shrink():
        compact_unverified(graph, masks)

    seconds = timing.interleave([clone, shrink], 5, time.process_time)
    clone_seconds, compact_seconds = np.median(seconds, axis=0)
    return {
        "clone": clone_seconds,
        "compact": compact_seconds,
        "ratio": timing.paired_ratio(seconds),
    }


def _latencies(model, small):
    models = {
        "dense": model,
        "small": small,
        "optimized": tfprune.compact(small, optimize=True),
    }
    (once,) = tfprune.benchmark(model, BATCH_SIZE, rounds=1, warmup=1).rows
    rounds = int(np.clip(SECONDS_PER_MODEL / (3e-3 * once.median), 5, 40))
    result = tfprune.benchmark(models, BATCH_SIZE, rounds)
    return {
        "dense_ms": result["dense"].median,
        "small_ms": result["small"].median,
        "optimized_ms": result["optimized"].median,
        "speedup": result["small"].speedup,
        "optimized_speedup": result["optimized"].speedup,
    }


def measured_apart(name, finished):
    """Runs `measure` in a process of its own, if no file has its row.

    Args:
        name: name of the application.
        finished: `Results`.

    Returns:
        The row, None if it failed.
    """
    found = finished.find(name=name)
    if found is not None:
        return found
    command = [sys.executable, __file__, "--measure", name]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        print(f"{name} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    row = json.loads(done.stdout.splitlines()[-1])
    finished.add(row)
    return row


LEGEND = """\
free: kernel channels that can go. s: CPU seconds; compact without its certificate, clone is
clone_model + set_weights. peak MB: by how much memory grew in compact, of which the
new weights are new MB. ms: of one batch; how many times faster than dense, the median of
interleaved rounds. optimized: compact(optimize=True)."""
COLUMNS = {
    "params M": lambda r: f"{r['params'] / 1e6:.1f}",
    "MACs M": lambda r: f"{r['macs'] / 1e6:,.0f}",
    "left": lambda r: f"{r['left']:.1%}",
    "groups": lambda r: f"{r['groups']}",
    "free": lambda r: f"{r['free']:.1%}",
    "trace s": lambda r: f"{r['trace']:.2f}",
    "select s": lambda r: f"{r['select']:.2f}",
    "compact s": lambda r: f"{r['compact']:.2f}",
    "clone s": lambda r: f"{r['clone']:.2f}",
    "peak MB": lambda r: "" if r["peak"] is None else f"{r['peak']:+,.0f}",
    "new MB": lambda r: f"{r['new']:,.0f}",
    "error": lambda r: f"{r['error']:.0e}",
    "dense ms": lambda r: f"{r['dense_ms']:.0f}",
    "small ms": lambda r: f"{r['small_ms']:.0f} {r['speedup']:.2f}x",
    "optimized ms": lambda r: f"{r['optimized_ms']:.0f} {r['optimized_speedup']:.2f}x",
}


def table(results):
    from rich import box
    from rich.table import Table

    result = Table(
        title=f"keras.applications at -50 % MACs, {SIZE} px, batch {BATCH_SIZE}",
        caption=_caption(results),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    result.add_column("model")
    for name in COLUMNS:
        result.add_column(name, justify="right")
    for each in results:
        result.add_row(each["name"], *(cell(each) for cell in COLUMNS.values()))
    return result


def _caption(results):
    from rich.text import Text

    lines = [
        f"{r['name']} keeps channels: {r['kept']}"
        for r in results
        if not r["kept"].startswith("an output")
    ]
    return Text("\n".join([LEGEND, *lines, benchmarking.describe_threads()]))


def claims(results):
    """Returns the worst of every promise as rows of a table of claims."""
    named = {each["name"]: each for each in results}

    def worst(claim, value, limit, unit, scale=1.0):
        row = max(results, key=value)
        claim = f"{claim}, worst of {len(results)}"
        return structure.Row(claim, scale * value(row), limit, unit, row["name"])

    rows = [
        worst("trace", lambda r: r["trace"], 0.5, "s"),
        worst("select", lambda r: r["select"], 4.0, "s"),
        worst("compact / clone_model + set_weights", lambda r: r["ratio"], 1.3, "x"),
        worst("relative error, in millionths", lambda r: r["error"], 100.0, "", 1e6),
    ]
    if all(each["peak"] is not None for each in results):
        claim = "peak of compact beyond old and new weights"
        rows.append(worst(claim, lambda r: r["peak"] - r["new"], 200.0, "MB"))
    if "ResNet50" in named:
        seconds = named["ResNet50"]["trace"] + named["ResNet50"]["select"]
        rows.append(structure.Row("trace and select, ResNet50", seconds, 0.4, "s"))
    for name, limit in SPEEDUPS.items():
        if name in named:
            claim = f"latency at -50 % MACs, {name}"
            speedup = named[name]["speedup"]
            rows.append(structure.Row(claim, speedup, limit, "x", "", True))
            speedup = named[name]["optimized_speedup"]
            claim = f"{claim}, optimize=True"
            rows.append(structure.Row(claim, speedup, limit, "x", "", True))
    for name, found in named.items():
        if name.startswith("ConvNeXt"):
            claim = f"latency with optimize=True over without, {name}"
            ratio = found["optimized_speedup"] / found["speedup"]
            rows.append(structure.Row(claim, ratio, 4, "x", "", True))
    return rows


def compared():
    """Returns what both libraries made of the same networks."""
    missing = [p for p in ("torch", "torch_pruning") if not importlib.util.find_spec(p)]
    if missing:
        sys.exit(
            f"zoo.py: error: --peer needs {' and '.join(missing)}, not installed here: "
            "pip install torch torch-pruning"
        )
    return list(peers.compare())


def main(arguments=None):
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=architectures.NAMES)
    parser.add_argument("--peer", choices=["torch-pruning"])
    parser.add_argument("--results", default="zoo.jsonl")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = {*options.only, options.measure or "VGG16"} - {*architectures.NAMES}
    if unknown:
        parser.error(f"no application of Keras: {', '.join(sorted(unknown))}")
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    console = Console()
    if not console.is_terminal:
        console.width = 200
    rows = []
    finished = Results(options.results)
    results = [measured_apart(name, finished) for name in options.only]
    results = [each for each in results if each is not None]
    if results:
        console.print(table(results))
        rows += claims(results)
    if options.peer:
        outcomes = compared()
        console.print(peers.table(outcomes))
        rows += peers.rows(outcomes)
    console.print(structure.table(rows, "What is promised"))
    if len(results) < len(options.only):
        sys.exit(f"zoo.py: {len(options.only) - len(results)} models failed")


if __name__ == "__main__":
    main()
