"""How much time is left, as a run of an even speed would say, and as machines read it."""

import json
import logging
from collections.abc import Generator, Iterator

import pytest

from corpus.pipeline import RunProgress
from corpus.progress import Pace, shown
from settings import logs


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def blocks(clock: Clock, resumed: int, seconds_of: list[float]) -> Iterator[RunProgress]:
    """Yield the progress of a run of blocks of 100 rows: `resumed` ones in no time, the others in so many seconds."""
    total = 100 * (resumed + len(seconds_of))
    for i in range(1, resumed + 1):
        clock.now += 0.001
        yield RunProgress(i, i * 100, i * 100, read=i * 100, expected=total)
    for i, seconds in enumerate(seconds_of, 1):
        clock.now += seconds
        rows = 100 * (resumed + i)
        yield RunProgress(resumed + i, rows, 100 * resumed, tokens=i * 1000, read=rows, expected=total)


SPEEDS = {
    "even": [2.0] * 200,
    "a slow start": [30.0] + [2.0] * 199,
    "uneven": [1.0, 3.0] * 100,
    "uneven rarely": ([1.0] * 4 + [3.0]) * 40,
}


@pytest.mark.parametrize("resumed", [0, 50, 5000])
@pytest.mark.parametrize("name", SPEEDS)
def test_the_time_left_is_right_within_a_fifth_after_a_tenth(name: str, resumed: int) -> None:
    clock = Clock()
    pace, seconds = Pace(clock), SPEEDS[name]
    for i, progress in enumerate(blocks(clock, resumed, seconds), -resumed + 1):
        pace.add(progress)
        if i <= 0:
            assert pace.seconds_left() is None and pace.tokens_s() == 0, "nothing is computed yet"
        elif i >= 20 and i < 190:
            left, truly = pace.seconds_left(), sum(seconds[i:])
            assert left is not None and abs(left - truly) <= 0.2 * truly, (i, left, truly)
    assert pace.seconds_left() == 0
    assert pace.tokens_s(whole=True) == pytest.approx(200_000 / sum(seconds), rel=0.01)


@pytest.mark.parametrize("resumed", [0, 50])
@pytest.mark.parametrize(("before", "after"), [(1.0, 3.0), (3.0, 1.0)], ids=["slower", "faster"])
def test_a_change_of_speed_is_followed(resumed: int, before: float, after: float) -> None:
    """By the mean of the run, the time left would be a third too short at a tenth of it, or twice too long."""
    clock, seconds = Clock(), [before] * 10 + [after] * 190
    pace = Pace(clock)
    for i, progress in enumerate(blocks(clock, resumed, seconds), 1 - resumed):
        pace.add(progress)
        if i >= 20:
            assert pace.seconds_left() == pytest.approx(sum(seconds[i:]), rel=0.2)


def steps(count: int) -> Generator[RunProgress]:
    yield from blocks(Clock(), 1, [0.0] * count)


def test_machines_get_an_object_a_line(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.INFO, "corpus.progress")
    progress, _ = shown(steps(3), as_json=True)
    assert progress.read == 400
    lines = [json.loads(logs.JsonLines().format(record)) for record in caplog.records]
    assert [line["fields"]["rows"] for line in lines] == [100], "then one in five seconds"
    assert lines[0]["fields"] == {
        "message": "progress",
        "rows": 100,
        "total": 400,
        "total_known": False,
        "reused": 100,
        "tokens": 0,
        "tokens_s": 0,
        "seconds_left": None,
    }
    assert capsys.readouterr().err == "", "no bar between them"


def test_people_see_whether_the_end_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    shown(steps(2), as_json=False)
    assert "300/~300 rows, " in capsys.readouterr().err
    shown((progress._replace(is_known=True) for progress in steps(2)), as_json=False)
    err = capsys.readouterr().err
    assert "300/300 rows, " in err and "left" in err and "100%" in err
