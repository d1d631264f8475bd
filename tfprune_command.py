"""The `tfprune` command: `tfprune inspect MODEL`, `tfprune prune MODEL --output OUT`.

It lies beside the package, as importing anything inside that imports TensorFlow: which
takes seconds, so help and mistakes in the command do not wait for it, and writes to
stderr, whatever its log level.
"""

import contextlib
import importlib.metadata
import os
import re
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.exceptions import TyperException

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


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


def main(arguments=None):
    """Runs the command line and returns its exit code.

    0 means done, 1 that it failed, 2 that the command was not understood. What went
    wrong is one line on stderr.

    Args:
        arguments: list of str. Defaults to the process's own.
    """
    settings = {"debug": False}
    try:
        with warnings.catch_warnings():
            code = app(
                arguments, prog_name="tfprune", standalone_mode=False, obj=settings
            )
        return code or 0
    except TyperException as error:
        message = f"{error.format_message().rstrip('.')}; see tfprune --help"
        return _fail(message, error.exit_code)
    except Exception as error:  # noqa: BLE001 (the last resort of a command)
        if settings["debug"]:
            traceback.print_exc()
        return _fail(str(error) or type(error).__name__, 1)


def _fail(message, code):
    # Keras colors parts of its messages, also where nobody sees colors.
    line = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", message).split())
    if len(line) > 600:
        line = f"{line[:600]} ... (`tfprune --debug` shows all of it)"
    print(f"tfprune: error: {line}", file=sys.stderr)
    return code


def _print_version(wanted: bool):
    if wanted:
        print(f"tfprune {importlib.metadata.version('tfprune')}")
        raise typer.Exit()


def _check_fraction(value: float):
    if not 0 <= value < 1:
        hint = f"; for {value:g} % pass {value / 100:g}" if 1 < value < 100 else ""
        raise typer.BadParameter(
            f"{value:g} is not in [0, 1): it is the fraction to remove{hint}"
        )
    return value


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show warnings, and tracebacks of errors.")
    ] = False,
):
    """Look into Keras models and prune their channels."""
    context.obj["debug"] = debug
    if not debug:
        warnings.simplefilter("ignore")


Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A .keras file.")]
Reduction = Annotated[
    float,
    typer.Option(callback=_check_fraction, help="Fraction of the FLOPs to remove."),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="Where to write: a .keras, .tflite or .onnx file, "
        "any other name is a SavedModel directory.",
    ),
]
Importance = Annotated[
    Literal["magnitude", "scale", "geometric_median", "random"],
    typer.Option(help="What makes a channel worth it."),
]
Scope = Annotated[
    Literal["global", "uniform"],
    typer.Option(help="Rank all channels together, or cut every group alike."),
]
MaxSparsity = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Most that any group may lose, as a fraction."),
]
MinChannels = Annotated[
    int, typer.Option(min=1, help="Fewest channels that any group keeps.")
]
MultipleOf = Annotated[
    int, typer.Option(min=1, help="Keep channel counts that are multiples of this.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace OUTPUT if it exists.")]


@app.command("inspect")
def _inspect(model: Model):
    """Print a model's layers: sizes, costs, and which channels are coupled."""
    _check_model(model)
    _work().inspect(model)


@app.command("prune")
def _prune(
    model: Model,
    output: Output,
    flops_reduction: Reduction = 0.5,
    importance: Importance = "magnitude",
    scope: Scope = "global",
    max_sparsity: MaxSparsity = None,
    min_channels: MinChannels = 1,
    multiple_of: MultipleOf = 1,
    force: Force = False,
):
    """Prune a model's channels in one shot and write the smaller model."""
    _check_model(model)
    _work().prune(
        model,
        output,
        force,
        importance,
        flops_reduction=flops_reduction,
        scope=scope,
        max_sparsity=max_sparsity,
        min_channels=min_channels,
        multiple_of=multiple_of,
    )


def _check_model(path):
    if path.is_dir() or path.suffix != ".keras":
        raise ValueError(f"{path} is not a .keras file")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")


def _work():
    with quiet_tensorflow():
        from tfprune import cli
    return cli
