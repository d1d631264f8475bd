"""What the commands do; `tfprune_command` says how they are called."""

import re
import tempfile
from pathlib import Path

import keras

from tfprune import costs, exporting, graph, importances, pruning, reports

_FORMATS = {".keras": "keras", ".tflite": "litert", ".onnx": "onnx"}


def inspect(path):
    """Prints the layers of the model at `path`."""
    _print(reports.inspect_table(graph.Graph(_load(path)), title=path.name))


def prune(path, output, force, importance, **options):
    """Writes the pruned model of `path` to `output`, and prints what came of it.

    Args:
        path: `pathlib.Path` of a `.keras` file.
        output: `pathlib.Path`; its ending says the format.
        force: bool. Whether `output` may be replaced.
        importance: str. Name of an importance.
        options: further arguments of `tfprune.prune`.
    """
    format = _FORMATS.get(output.suffix, "tf_saved_model")
    _check_output(output, format, force)
    dense = _load(path)
    pruned = pruning.prune(dense, importance=importances.get(importance), **options)
    # The given file may be of another format, and hold the state of an optimizer.
    with tempfile.TemporaryDirectory() as directory:
        like_output = Path(directory, output.name)
        exporting.export(graph.Graph(dense).model, like_output, format=format)
        before = _measure(dense, like_output)
    exporting.export(pruned, output, format=format, overwrite=force)
    after = _measure(pruned, output)
    _print(reports.comparison_table(before, after, title=str(output)))
    for path in costs.cost(dense).uncounted:
        print(f"not among the multiply-accumulates: {path}, which was not followed")


def _check_output(output, format, force):
    try:
        exporting.check_path(output, format, overwrite=force)
    except FileExistsError as error:
        hint = "and is no model to replace" if force else "(--force replaces it)"
        raise FileExistsError(f"{output} exists {hint}") from error


def _load(path):
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise ValueError(f"cannot load {path}: {_reason(error)}") from error


def _reason(error) -> str:
    """Says what a command cannot do and Python can, of what Keras says at length."""
    text = str(error)
    missing = re.search(r"Could not locate (class|function) '([^']+)'", text)
    if missing:
        return (
            f"it needs the {missing[1]} {missing[2]!r}, which is not Keras's. In Python, "
            "import it, load the model and call tfprune.prune"
        )
    if "safe_mode" in text:
        return (
            "it holds Python code of a Lambda layer. If you trust the file, in Python: "
            "model = keras.saving.load_model(path, safe_mode=False); tfprune.prune(model)"
        )
    return text


def _measure(model, path):
    cost = costs.cost(model)
    return reports.Measurements(cost.params, cost.macs, reports.bytes_on_disk(path))


def _print(table):
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        # A file or a pipe has no width: nothing is wrapped or cut.
        wide = console.options.update(max_width=10_000)
        console.width = max(80, console.measure(table, options=wide).maximum)
    console.print(table)
