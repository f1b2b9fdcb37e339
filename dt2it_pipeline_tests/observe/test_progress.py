"""Progress: counted in one way, with rate and time left, and shown now and then."""

import doctest
import itertools

import pytest

from dt2it_pipeline.observe import progress
from dt2it_pipeline.observe.logs import VariableError
from dt2it_pipeline.observe.progress import Progress, in_words, now_and_then, progress_seconds


def test_the_examples_are_right():
    assert doctest.testmod(progress).failed == 0


def test_rate_and_time_left_are_those_of_this_call_not_of_what_an_earlier_one_did():
    states, clock = [], itertools.count(0.0, 10.0)
    counted = Progress(states.append, "steps", 100, first=60, clock=lambda: next(clock))
    counted.add(5, loss=0.5, accuracy=None)
    counted.add(35)
    assert states[0] == {
        "done": 65, "unit": "steps", "total": 100, "per_second": 0.5, "seconds_left": 70.0, "loss": 0.5
    }  # fmt: skip
    assert (states[1]["done"], states[1]["per_second"], states[1]["seconds_left"]) == (100, 2.0, 0.0)
    assert in_words(states[1]) == "100 of 100 steps, 2 per second"


def test_where_the_end_is_not_known_there_is_no_time_left():
    states, clock = [], itertools.count(0.0, 2.0)
    Progress(states.append, "items", clock=lambda: next(clock)).add(3)
    assert states == [{"done": 3, "unit": "items", "per_second": 1.5}]


def test_states_are_shown_every_so_many_seconds_and_where_asked_first_and_last(monkeypatch):
    def shown_of(ends):
        now, shown = [0.0], []
        report = now_and_then(shown.append, 30, clock=lambda: now[0], ends=ends)
        for second in range(100):
            now[0] = float(second)
            report({"done": second + 1, "total": 100, "unit": "steps"})
        report({"validation_loss": 0.5})
        return [state.get("done") for state in shown]

    assert shown_of(ends=False) == [31, 61, 91, None]
    assert shown_of(ends=True) == [1, 31, 61, 91, 100, None]
    monkeypatch.setenv("DT2IT_PROGRESS_SECONDS", "0")
    shown = []
    report = now_and_then(shown.append)
    for done in range(5):
        report({"done": done, "unit": "steps"})
    assert len(shown) == 5


@pytest.mark.parametrize("given", ["soon", "-1", "inf", "nan"])
def test_seconds_that_are_none_are_refused(given, monkeypatch):
    monkeypatch.setenv("DT2IT_PROGRESS_SECONDS", given)
    with pytest.raises(VariableError, match=f"DT2IT_PROGRESS_SECONDS={given}: it must be a number of seconds"):
        progress_seconds()


@pytest.mark.parametrize(("seconds", "words"), [(5, "5 s"), (600, "10 min"), (36_000, "10.0 h")])
def test_a_duration_is_worded_in_its_own_unit(seconds, words):
    state = {"done": 1, "total": 9, "unit": "calls", "per_second": 1.0, "seconds_left": seconds}
    assert in_words(state) == f"1 of 9 calls, 1 per second, {words} left"
