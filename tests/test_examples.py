"""The examples and benchmarks run, in reduced form."""

import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path

import keras
import pytest
import tensorflow as tf

import tfprune
from tfprune import reports

ROOT = Path(__file__).parent.parent


def load(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class NoProgress:
    def add_task(self, description, total):
        return 0

    def advance(self, task):
        pass

    def update(self, task, description):
        pass


@pytest.fixture(scope="module")
def demo():
    return load("examples/demo.py")


def test_demo(demo, tmp_path):
    settings = demo.Settings(
        limit=128, epochs=(1, 2, 1), widths=(8, 16), rounds=3, output=tmp_path / "demo"
    )
    result = demo.run(settings, NoProgress())
    assert result.after.macs <= 0.4 * result.before.macs
    assert result.after.params < result.before.params
    assert result.difference < 1e-4
    assert sorted(p.name for p in settings.output.iterdir()) == ["dense", "pruned"]
    assert tf.saved_model.load(str(settings.output / "pruned")).serve


def test_demo_fails_loudly(demo):
    @dataclasses.dataclass
    class Latency:
        speedup: float

    before = reports.Measurements(100, 1000, 100, 2.0, 0.99)
    good = reports.Measurements(40, 400, 40, 1.0, 0.98)
    settings = demo.Settings()
    result = demo.Result(before, good, {"pruned": Latency(1.5)}, 1e-6)
    assert demo.failures(result, settings) == []
    bad = {
        "FLOPs": {"after": dataclasses.replace(good, macs=401)},
        "accuracy": {"after": dataclasses.replace(good, accuracy=0.969)},
        "faster": {"latency": {"pruned": Latency(1.29)}},
        "differ": {"difference": 1e-3},
    }
    for word, change in bad.items():
        (sentence,) = demo.failures(dataclasses.replace(result, **change), settings)
        assert word in sentence


def test_demo_notices_another_network(demo, monkeypatch, images):
    code = "import sys, numpy as np; np.save(sys.argv[3], 2 * np.load(sys.argv[2]))"
    monkeypatch.setattr(demo, "_RELOAD", code)
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Identity()])
    assert demo.reload_elsewhere(model, "other", images[0]) == pytest.approx(1)


def test_demo_says_why_the_saved_model_does_not_run(demo, monkeypatch, images):
    monkeypatch.setattr(demo, "_RELOAD", "import sys; sys.exit(f'no {sys.argv[1]}')")
    with pytest.raises(RuntimeError, match="does not run alone:\nno pruned"):
        demo.reload_elsewhere(None, "pruned", images[0])


def test_demo_digits(demo):
    (train_x, _), (test_x, test_y) = demo.load_data(demo.Settings())
    assert train_x.shape == (1347, 8, 8, 1)
    assert test_x.shape == (450, 8, 8, 1)
    assert train_x.min() == 0 and train_x.max() == 1
    assert set(test_y) == set(range(10))


def test_quickstart(tmp_path, capsys):
    model, small = load("examples/quickstart.py").main(1, tmp_path / "small")
    assert small.count_params() < model.count_params()
    assert (tmp_path / "small" / "saved_model.pb").is_file()
    assert "pruned" in capsys.readouterr().out


def test_gate_decorator(capsys):
    model, small = load("examples/gate_decorator.py").main(8, 4)
    assert tfprune.cost(small).macs <= 0.4 * tfprune.cost(model).macs
    assert "small: " in capsys.readouterr().out


def test_polarization(capsys):
    model, small = load("examples/polarization.py").main(16, 8)
    assert tfprune.cost(small).macs <= 0.9 * tfprune.cost(model).macs
    printed = capsys.readouterr().out
    before, trained, end = map(float, re.findall(r"accuracy ([\d.]+)%", printed))
    # What is lost by pruning alone is little, thanks to the gap and the folding.
    assert before > trained - 5 and end > trained - 5 and trained > 60


def test_autoprune(capsys):
    sparse, masks = load("examples/autoprune.py").main(64, 24)
    assert masks.density() < 0.3
    (accuracy,) = map(float, re.findall(r"accuracy ([\d.]+)%", capsys.readouterr().out))
    assert accuracy > 80


def test_gsm(capsys, tmp_path):
    path = tmp_path / "digits.tfsparse"
    _, sparse, tickets = load("examples/gsm.py").main(256, 16, path)
    kept = tfprune.read_masks(tfprune.Graph(sparse, unit="weight"))
    assert abs(kept.density() - 0.05) < 0.001
    assert path.stat().st_size < 20_000
    printed = capsys.readouterr().out
    gap = float(re.search(r"gap: (\S+)", printed)[1])
    before, after = map(
        float, re.search(r"([\d.]+) before, ([\d.]+)", printed).groups()
    )
    assert gap > 10 and after > before - 0.01 and after > 0.9
    assert float(re.search(r"([\d.]+)% of the norm", printed)[1]) < 10
    by_gsm = re.search(r"ticket by GSM: accuracy ([\d.]+)%", printed)[1]
    assert float(by_gsm) > 80
    assert tickets["GSM"].masks.density() == kept.density()


def test_runtime_pruning(capsys):
    accuracy, shares = load("examples/runtime_pruning.py").main(16, (3, 2))
    assert accuracy > 0.15
    assert 0 < shares.mean() < 0.5
    assert re.search(r"\d+% of the work", capsys.readouterr().out)


def test_from_tfmot(capsys):
    _, plain = load("examples/from_tfmot.py").main(2)
    kept = tfprune.read_masks(tfprune.Graph(plain, unit="weight"))
    assert abs(kept.density() - 0.2) < 0.01
    assert "sparse: 20% of the weights" in capsys.readouterr().out


def test_gsm_benchmark(tmp_path):
    gsm = load("benchmarks/gsm.py")
    rate = gsm.Steps(gsm.Phase(20, 0.1, (5, 10), warm_up=1), 50)
    steps = [0, 49, 200, 250, 550]
    expected = [0.1 / 50, 0.1, 0.1, 0.01, 0.001]
    assert [float(rate(step)) for step in steps] == pytest.approx(expected)
    results = gsm.Results(tmp_path / "runs.jsonl")
    keys = {"net": "lenet300", "compression": 60, "schedule": "short"}
    for number, method in enumerate(gsm.METHODS):
        more = {"accuracy": 90.0 + number, "before": 91.05, "epochs": 1, "weights": 9}
        own = {**keys, "compression": 1} if method == gsm.BASE else keys
        results.add({**own, "seed": 0, "method": method, **more})
    again = gsm.Results(tmp_path / "runs.jsonl")
    runs = {method: gsm._runs(again, keys, method) for method in gsm.METHODS}
    assert gsm._table(keys, runs).row_count == len(gsm.METHODS)
    claims = [(row.measured, row.holds) for row in gsm._claims(keys, runs)]
    expected = [(91.0, False), (0.05, True), *[(-1.0, False)] * 3]
    assert claims == [(pytest.approx(value), holds) for value, holds in expected]
    # Without a gradient a weight decays, by momentum all the faster.
    left = gsm._followed(0.9, 0.01, 0.01, 300)
    assert left[-1] == pytest.approx((1 - 0.01 * 0.01 / (1 - 0.9)) ** 300, rel=0.01)


def test_published_numbers_are_complete():
    rows = json.loads((ROOT / "benchmarks/published.json").read_text())
    required = {"paper", "network", "dataset", "method", "baseline", "pruned"}
    required |= {"metric", "flops_reduction", "source"}
    for row in rows:
        assert required <= row.keys() and row.keys() <= required | {"note"}
        assert row["source"] and isinstance(row["pruned"], float | int)
        assert row["flops_reduction"] is None or 0 < row["flops_reduction"] < 1
        assert row["flops_reduction"] is not None or row["note"]
    (ours,) = (
        row
        for row in rows
        if (row["network"], row["method"]) == ("ResNet-56", "Polarization")
        and row["flops_reduction"] == 0.71
    )
    assert (ours["baseline"], ours["pruned"]) == (93.80, 92.63)


def test_published_table():
    published = load("benchmarks/published.py")
    table = published.table("ResNet-56")
    assert table.row_count == len(published.rows("ResNet-56")) > 20
    with pytest.raises(ValueError, match="ResNet-18, ResNet-50, ResNet-56"):
        published.table("ResNet-9")


def test_structure_rows_and_missing_models(tmp_path, capsys):
    structure = load("benchmarks/structure.py")
    rows = [
        structure.Row("time", 0.2, 0.3, "s"),
        structure.Row("speed", 1.2, 1.3, "x", higher_is_better=True),
    ]
    assert [row.holds for row in rows] == [True, False]
    assert structure.table(rows).row_count == 2
    assert list(structure.trace(structure.loader(tmp_path))) == []
    assert "left out: no resnet56*.keras" in capsys.readouterr().err
