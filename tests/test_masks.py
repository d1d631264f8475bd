"""Masks: the value that every method ends in."""

import numpy as np
import pytest

import tfprune
from tfprune import Masks


@pytest.fixture
def masks():
    return Masks({"a/conv": [True, False, True, True], "b": np.array([False, True])})


def test_is_a_mapping(masks):
    assert list(masks) == ["a/conv", "b"] and len(masks) == 2
    assert masks["b"].tolist() == [False, True]
    assert masks["b"].dtype == bool
    assert dict(masks).keys() == {"a/conv", "b"}
    with pytest.raises(KeyError):
        masks["c"]


def test_density_is_of_units(masks):
    assert masks.density() == 4 / 6
    assert Masks({}).density() == 1.0


def test_equality(masks):
    assert masks == Masks(masks) and masks == dict(masks)
    assert masks != Masks({"b": masks["b"]})
    assert masks != Masks({**masks, "b": [True, True]})
    assert masks != 3
    with pytest.raises(TypeError):
        hash(masks)


def test_order_of_the_groups_does_not_matter(masks):
    assert masks == Masks(dict(reversed(list(masks.items()))))


def test_and(masks):
    both = masks & {"b": [True, True], "c": [True]}
    assert both["b"].tolist() == [False, True]
    assert both["a/conv"].tolist() == [True, False, True, True]
    assert both["c"].tolist() == [True]
    assert masks & masks == masks
    with pytest.raises(ValueError, match="must agree in size"):
        masks & {"b": np.array([True])}


def test_is_immutable_and_owns_its_arrays():
    array = np.array([True, True])
    masks = Masks({"a": array})
    array[0] = False
    assert masks["a"].all()
    with pytest.raises(ValueError):
        masks["a"][0] = False
    with pytest.raises(TypeError):
        masks["a"] = array


def test_repr_shows_counts(masks):
    assert repr(masks) == "Masks({'a/conv': '3/4', 'b': '1/2'})"


@pytest.mark.parametrize(
    "value", [[1, 0], [0.5], [[True]], [], "yes", None, np.array(True)]
)
def test_other_arrays_are_refused(value):
    with pytest.raises(ValueError, match="1-D bool array"):
        Masks({"a": value})


def test_names_must_be_strings():
    with pytest.raises(ValueError, match="must be strings"):
        Masks({3: [True]})


@pytest.mark.parametrize("name", ["masks.npz", "masks", "masks.bin"])
def test_round_trip_through_a_file(masks, tmp_path, name):
    masks.save(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    loaded = Masks.load(tmp_path / name)
    assert loaded == masks and list(loaded) == list(masks)
    Masks({}).save(str(tmp_path / name))
    assert Masks.load(str(tmp_path / name)) == Masks({})


def test_names_of_any_kind_survive_a_file(tmp_path):
    masks = Masks({"größe/1": [True], "arr_0": [False], "": [True], "file": [True]})
    masks.save(tmp_path / "m")
    assert Masks.load(tmp_path / "m") == masks


def test_a_failed_save_leaves_the_old_file(masks, tmp_path, monkeypatch):
    masks.save(tmp_path / "m")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        Masks({"other": [True]}).save(tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert Masks.load(tmp_path / "m") == masks


def test_a_file_is_as_open_to_others_as_any(masks, tmp_path):
    masks.save(tmp_path / "m")
    (tmp_path / "plain").write_text("")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("no masks")
    np.savez(tmp_path / "others.npz", weights=np.ones(3))
    for name in ("text", "others.npz"):
        with pytest.raises(ValueError, match=name):
            Masks.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Masks.load(tmp_path / "missing")


def test_pickles_are_never_loaded(tmp_path):
    np.savez(tmp_path / "m.npz", np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="m.npz"):
        Masks.load(tmp_path / "m.npz")


def test_is_public():
    assert tfprune.Masks is Masks
