"""The command line, as a shell sees it: exit codes, stdout, stderr, files."""

import contextlib
import os
import runpy
import subprocess
import sys
import typing
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfprune
import tfprune_command
from tfprune import importances, reports

ROOT = Path(__file__).parent.parent


@pytest.fixture
def saved(make_residual, tmp_path):
    path = tmp_path / "model.keras"
    make_residual(width=16).save(path)
    return path


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = tfprune_command.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def assert_one_line_error(err):
    assert err.startswith("tfprune: error: ")
    assert err.count("\n") == 1


def test_inspect_prints_the_table_on_stdout(run, saved):
    code, out, err = run("inspect", saved)
    assert (code, err) == (0, "")
    assert "stem_conv" in out and "logits" in out and "prunable channels" in out


def test_prune_writes_a_keras_file(run, saved, tmp_path):
    output = tmp_path / "small.keras"
    code, out, err = run("prune", saved, "--flops-reduction", 0.5, "--output", output)
    assert (code, err) == (0, "")
    assert "multiply-accumulates" in out
    before, after = (
        tfprune.cost(keras.saving.load_model(path)).macs for path in (saved, output)
    )
    assert 0.4 * before < after <= 0.5 * before
    assert sorted(os.listdir(tmp_path)) == ["model.keras", "small.keras"]


def test_prune_writes_a_saved_model(run, saved, tmp_path):
    code, _, err = run("prune", saved, "-o", tmp_path / "small")
    assert (code, err) == (0, "")
    artefact = tf.saved_model.load(str(tmp_path / "small"))
    assert artefact.serve(np.zeros((1, 8, 8, 3), "float32")).shape == (1, 3)


@pytest.mark.parametrize(
    ("format", "suffix"),
    [("keras", ".keras"), ("onnx", ".onnx")],
)
def test_file_sizes_are_those_of_one_format_and_of_models_alone(
    run, saved, images, tmp_path, format, suffix
):
    model = keras.saving.load_model(saved)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*images, verbose=0)
    model.save(saved)
    code, out, err = run("prune", saved, "-o", tmp_path / f"small{suffix}")
    assert (code, err) == (0, "")
    plain = keras.saving.load_model(saved, compile=False)
    tfprune.export(plain, tmp_path / f"dense{suffix}", format=format)
    (line,) = (line for line in out.splitlines() if "file size" in line)
    for name in ("dense", "small"):
        size = reports.bytes_on_disk(tmp_path / f"{name}{suffix}")
        assert reports.file_size(size) in line


def test_options_reach_the_budget(run, saved, tmp_path):
    output = tmp_path / "small.keras"
    options = ("--scope", "uniform", "--multiple-of", 4, "--min-channels", 8)
    code, _, err = run(
        *("prune", saved, "-o", output, "--flops-reduction", 0.3, *options),
        *("--max-sparsity", 0.5, "--importance", "random"),
    )
    assert (code, err) == (0, "")
    small = keras.saving.load_model(output)
    widths = [x.filters for x in small.layers if isinstance(x, keras.layers.Conv2D)]
    assert all(width % 4 == 0 and width >= 8 for width in widths)


def test_nothing_is_overwritten_without_force(run, saved, tmp_path):
    output = tmp_path / "small.keras"
    output.write_text("mine")
    code, out, err = run("prune", saved, "-o", output)
    assert (code, out) == (1, "")
    assert_one_line_error(err)
    assert "--force" in err and "small.keras" in err
    assert output.read_text() == "mine"

    code, _, err = run("prune", saved, "-o", output, "--force")
    assert (code, err) == (0, "")
    assert keras.saving.load_model(output).count_params() > 0


def test_the_model_itself_can_be_replaced(run, saved):
    before = keras.saving.load_model(saved).count_params()
    assert run("prune", saved, "-o", saved, "--force")[0] == 0
    assert keras.saving.load_model(saved).count_params() < before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Missing command"),
        (("explode",), "No such command"),
        (("prune", "m.keras"), "--output"),
        (("prune", "m.keras", "-o", "x", "--flops-reduction", "50"), "pass 0.5"),
        (("prune", "m.keras", "-o", "x", "--flops-reduction", "1"), "not in [0, 1)"),
        (
            ("prune", "m.keras", "-o", "x", "--flops-reduction", "half"),
            "Invalid value for '--flops-reduction'",
        ),
        (("prune", "m.keras", "-o", "x", "--importance", "vibes"), "vibes"),
        (("prune", "m.keras", "-o", "x", "--scope", "local"), "local"),
        (("prune", "m.keras", "-o", "x", "--min-channels", "0"), "min-channels"),
        (("inspect", "m.keras", "--wide"), "--wide"),
    ],
)
def test_usage_errors_are_two(run, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert_one_line_error(err)
    assert words in err and "tfprune --help" in err


FAILURES = {
    "inspect {}/none.keras": "does not exist",
    "inspect {}/notes.txt": "is not a .keras file",
    "inspect {}/broken.keras": "cannot load",
    "inspect {}/custom.keras": "it needs the class 'Custom'",
    "inspect {}/lambda.keras": "safe_mode=False",
    "inspect {}": "is not a .keras file",
    "prune {}/model.keras -o {}/none/small": "existing directory",
    "prune {}/model.keras -o {}/small.h5": "directory",
    "prune {}/model.keras -o {}/small --flops-reduction 0.999": "at most",
    "prune {}/model.keras -o {} --force": "is no model to replace",
}


def of_ones_own():
    class Custom(keras.layers.Layer):
        """Of no module that the command could import it from."""

    return {"custom": Custom(), "lambda": keras.layers.Lambda(lambda x: x)}


@pytest.mark.parametrize("command", FAILURES)
def test_failures_are_one_and_leave_the_disk_alone(run, saved, tmp_path, command):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.keras").write_bytes(b"PK not really a zip")
    for name, layer in of_ones_own().items():
        model = keras.Sequential([keras.Input((4,)), layer])
        model.save(tmp_path / f"{name}.keras")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, out, err = run(*command.replace("{}", str(tmp_path)).split())
    assert (code, out) == (1, "")
    assert_one_line_error(err)
    assert FAILURES[command] in err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_debug_shows_the_traceback(run, tmp_path):
    code, _, err = run("--debug", "inspect", tmp_path / "none.keras")
    assert code == 1
    assert "Traceback" in err


def test_version_and_help(run):
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert out.split()[0] == "tfprune"
    code, out, _ = run("prune", "--help")
    assert code == 0
    assert "--flops-reduction" in out and "--force" in out


def process(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def test_the_module_runs(saved, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tfprune", "inspect", str(saved)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("tfprune", run_name="__main__")
    assert not ended.value.code
    assert "logits" in capsys.readouterr().out


INSTALLED = ("-c", "import sys, tfprune_command as c; sys.exit(c.main())")


def test_the_installed_command_keeps_stderr_clean(saved):
    done = process(*INSTALLED, "inspect", saved)
    assert (done.returncode, done.stderr) == (0, "")
    assert "logits" in done.stdout


WITHOUT_TENSORFLOW = (
    "-c",
    "import sys, tfprune_command as c; code = c.main();"
    "assert 'tensorflow' not in sys.modules; sys.exit(code)",
)


def test_mistakes_and_help_do_not_wait_for_tensorflow(tmp_path):
    done = process(*WITHOUT_TENSORFLOW, "inspect", tmp_path / "none.keras")
    assert (done.returncode, done.stdout) == (1, "")
    assert_one_line_error(done.stderr)
    for arguments in (("--help",), ("--version",), ("prune", "--help")):
        done = process(*WITHOUT_TENSORFLOW, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert "tfprune" in done.stdout


def test_every_importance_of_channels_without_data_is_offered(make_residual):
    graph = tfprune.Graph(make_residual(4))
    known = {name: importances.get(name) for name in importances._BY_NAME}
    usable = set()
    for name, importance in known.items():
        with contextlib.suppress(ValueError):
            if not importances.needs_data(importance):
                importance(graph)
                usable.add(name)
    offered, *_ = typing.get_args(tfprune_command.Importance)
    assert usable == set(typing.get_args(offered))
