"""How much faster one way to compute is, on a machine that other programs slow down: times of the test's own."""

from collections.abc import Callable
from random import Random

import pytest

from engine.measurements import ENOUGH_ROUNDS, MOST_ROUNDS, times_as_fast

WORTH, SEEDS = 1.5, range(200)


class Machine:
    """A clock for programs that take longer while a burst lasts: for some of them in a row, each burst another time."""

    def __init__(self, seed: int | None = None) -> None:
        self.now, self.runs, self._left, self._slowed = 0.0, 0, 0, 1.0
        self._random = None if seed is None else Random(seed)

    def program(self, seconds: float) -> Callable[[], None]:
        """Return a program that takes so long alone."""

        def run() -> None:
            self.runs += 1
            self.now += seconds * self._slowdown()

        return run

    def _slowdown(self) -> float:
        if not self._random:
            return 1.0
        if self._left == 0:
            burst = self._random.random() < 0.5
            self._slowed = self._random.uniform(1.2, 4) if burst else 1.0
            self._left = self._random.randint(2, 10) if burst else self._random.randint(1, 5)
        self._left -= 1
        return self._slowed


def ratio_of(machine: Machine, slow: float) -> float:
    return times_as_fast(machine.program(slow), machine.program(1.0), WORTH, lambda: machine.now)


def one_after_the_other(machine: Machine, slow: float) -> float:
    """Return the ratio of the least of five times each, the second way timed after the first."""
    seconds = []
    for program in (machine.program(slow), machine.program(1.0)):
        times = []
        for _ in range(5):
            start = machine.now
            program()
            times.append(machine.now - start)
        seconds.append(min(times))
    return seconds[0] / seconds[1]


@pytest.mark.parametrize("slow", [1.25, 1.7])
def test_bursts_of_other_programs_do_not_change_the_answer(slow: float) -> None:
    assert {one_after_the_other(Machine(seed), slow) >= WORTH for seed in SEEDS} == {True, False}
    assert {ratio_of(Machine(seed), slow) >= WORTH for seed in SEEDS} == {slow >= WORTH}


@pytest.mark.parametrize(("slow", "rounds"), [(1.0, ENOUGH_ROUNDS), (2.0, ENOUGH_ROUNDS), (1.45, MOST_ROUNDS)])
def test_what_is_close_is_timed_longer(slow: float, rounds: int) -> None:
    machine = Machine()
    assert ratio_of(machine, slow) == pytest.approx(slow) and machine.runs == 2 * rounds
