"""Schedules, with numbers to check by eye."""

import dataclasses
import itertools
import time

import pytest

from tfprune.schedules import Constant, OneShot, Periodic, Polynomial, Update

ALL = (Constant(), OneShot(), Periodic(), Polynomial())


def steps(schedule, total_steps):
    return [update.step for update in schedule.updates(total_steps)]


def fractions(schedule, total_steps):
    return [update.fraction for update in schedule.updates(total_steps)]


def test_constant_chooses_anew_until_the_run_ends():
    assert steps(Constant(begin=2, frequency=3), 10) == [2, 5, 8]
    assert fractions(Constant(begin=2, frequency=3), 10) == [1.0, 1.0, 1.0]


def test_constant_chooses_nothing_after_the_last_step_unless_it_begins_there():
    assert steps(Constant(begin=2, frequency=4), 10) == [2, 6]
    assert steps(Constant(begin=10, frequency=4), 10) == [10]


def test_one_shot():
    assert OneShot(3).updates(10) == (Update(3, 1.0),)
    assert OneShot(0.5).updates(10) == (Update(5, 1.0),)
    assert OneShot(1.0).updates(10) == (Update(10, 1.0),)
    assert OneShot(1).updates(10) == (Update(1, 1.0),)


def test_periodic_is_linear():
    schedule = Periodic(begin=10, end=50, frequency=10)
    assert steps(schedule, 100) == [20, 30, 40, 50]
    assert fractions(schedule, 100) == [0.25, 0.5, 0.75, 1.0]


def test_polynomial_is_cubic():
    schedule = Polynomial(begin=0, end=4, frequency=1)
    # 1 - (3/4)^3, 1 - (1/2)^3, 1 - (1/4)^3, 1
    assert fractions(schedule, 4) == [0.578125, 0.875, 0.984375, 1.0]


def test_polynomial_of_power_one_is_periodic():
    span = {"begin": 3, "end": 50, "frequency": 7}
    assert Polynomial(power=1, **span).updates(99) == Periodic(**span).updates(99)


def test_times_as_fractions_of_the_run():
    assert steps(Periodic(begin=0.1, end=0.5, frequency=0.2), 100) == [30, 50]
    assert steps(Constant(begin=0.5, frequency=0.25), 8) == [4, 6]


def test_default_schedule_ends_in_the_middle_of_the_run():
    assert steps(Polynomial(), 1000) == list(range(25, 501, 25))


@pytest.mark.parametrize("frequency", [1, 2, 3, 7, 100, 10**9, 0.01, 0.4, 1.0])
@pytest.mark.parametrize("schedule", [Periodic, Polynomial])
def test_last_update_brings_the_whole_budget_whatever_the_frequency(
    schedule, frequency
):
    last = schedule(begin=1, end=7, frequency=frequency).updates(7)[-1]
    assert last == Update(7, 1.0)


@pytest.mark.parametrize("total_steps", [1, 2, 3, 7, 8, 101])
@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_contract(schedule, total_steps):
    updates = schedule.updates(total_steps)
    assert updates[-1].fraction == 1.0
    assert all(a.step < b.step for a, b in itertools.pairwise(updates))
    assert all(0 < update.fraction <= 1 for update in updates)
    assert all(0 <= update.step <= total_steps for update in updates)
    assert all(type(update.step) is int for update in updates)


@pytest.mark.parametrize("schedule", [Periodic, Polynomial])
def test_begin_may_equal_end(schedule):
    assert schedule(begin=5, end=5, frequency=2).updates(9) == (Update(5, 1.0),)
    assert schedule(begin=0, end=0).updates(9) == (Update(0, 1.0),)


def test_steps_need_no_total():
    assert steps(OneShot(5), None) == [5]
    assert steps(Polynomial(begin=0, end=4, frequency=2), None) == [2, 4]


@pytest.mark.parametrize("schedule", [Constant(), OneShot(0.5), Polynomial()])
def test_fractions_need_the_total(schedule):
    with pytest.raises(ValueError, match="steps_per_epoch"):
        schedule.updates(None)


@pytest.mark.parametrize(
    "schedule",
    [Constant(11), OneShot(11), Periodic(end=11), Polynomial(0, 11, frequency=1)],
)
def test_schedule_that_cannot_finish_is_refused(schedule):
    with pytest.raises(ValueError, match="needs 11 .* the run has 10.*more epochs"):
        schedule.updates(10)


def test_empty_run_is_refused():
    with pytest.raises(ValueError, match="total_steps=0"):
        OneShot().updates(0)


def test_begin_after_end_in_mixed_units_is_refused_when_the_total_is_known():
    schedule = Polynomial(begin=60, end=0.5)
    assert steps(schedule, 200)[-1] == 100
    with pytest.raises(ValueError, match="begins at step 60 and ends at 50"):
        schedule.updates(100)


@pytest.mark.parametrize("time", [-1, 1.5, -0.1, float("nan"), "5", None, True])
@pytest.mark.parametrize(
    ("schedule", "name"),
    [(Constant, "begin"), (OneShot, "at"), (Periodic, "begin"), (Polynomial, "end")],
)
def test_bad_times_are_refused(schedule, name, time):
    with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}="):
        schedule(**{name: time})


@pytest.mark.parametrize("frequency", [0, 0.0, -1, 1.5, None])
@pytest.mark.parametrize("schedule", [Constant, Periodic, Polynomial])
def test_bad_frequencies_are_refused(schedule, frequency):
    with pytest.raises(ValueError, match="`frequency` must be"):
        schedule(frequency=frequency)


@pytest.mark.parametrize("power", [0, -1, float("nan"), float("inf"), "3", None])
def test_bad_powers_are_refused(power):
    with pytest.raises(ValueError, match="`power` must be above 0"):
        Polynomial(power=power)


@pytest.mark.parametrize("span", [(5, 4), (0.5, 0.25)])
def test_begin_after_end_is_refused(span):
    with pytest.raises(ValueError, match="`begin` must not come after `end`"):
        Periodic(*span)


def test_schedules_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        OneShot().at = 3


def test_long_schedules_are_quick():
    start = time.process_time()
    updates = Polynomial(0, 100_000, frequency=1).updates(100_000)
    assert len(updates) == 100_000
    # A second, or minutes if every update looked at all others.
    assert time.process_time() - start < 20
