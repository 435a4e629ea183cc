"""Careless and hostile clients: nobody else notices them, and they leave nothing behind.

make test-abuse                        # under three minutes
ABUSE_SECONDS=30 make test-abuse       # each attack for half a minute
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.abuse.attack import Attack
from tests.abuse.attacks import ATTACKS
from tests.abuse.conftest import SECONDS, Target, Watch, rows, settled, told

pytestmark = pytest.mark.abuse
# Single texts: p99 beside an attack is at most so many times p99 alone, or so many milliseconds, whichever is more.
TIMES, SINGLES_MS = 10, 400.0
LIVE_MS = 250.0
# What an attack may make the server hold beyond what it held before all attacks: docs/security.md says why.
MEMORY_BYTES = 2 << 30


# Other programs on the machine may fall into one try, and what this server does to others is in each. A longer try has
# more single texts: of a hundred, the 99th percentile is the slowest but one.
TRIES_S = (SECONDS, 2 * SECONDS, 4 * SECONDS)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.kind}, {attack.name}")
def test_nobody_else_notices(target: Target, attack: Attack) -> None:
    for seconds in TRIES_S:
        row, problems = tried(target, attack, seconds)
        if not problems:
            break
    rows.append([*row, "no" if problems else "yes"])
    assert not problems, problems


def tried(target: Target, attack: Attack, seconds: float) -> tuple[list[str], list[str]]:
    """Carry out an attack; return its cells of the table, and what did not hold."""
    memory = target.memory_bytes()
    with Watch(target) as watch, ThreadPoolExecutor(1) as pool:
        attacking = pool.submit(attack.run, target.urls, seconds + 0.5)
        measured = target.measure(seconds)
        outcome = attacking.result()
    more = settled(target)
    problems = [f"left behind: {more}"] if more else []
    problems += measured.failures[:3]
    for name in ("cog", "openai"):
        if measured.p99(name) > max(TIMES * target.alone.p99(name), SINGLES_MS):
            problems.append(f"single texts, {name}: p99 {measured.p99(name):.0f} ms")
    if max(measured.ms["live"]) > LIVE_MS:
        problems.append(f"/live took {max(measured.ms['live']):.0f} ms")
    if watch.most_bytes - memory > MEMORY_BYTES:
        problems.append(f"memory grew by {(watch.most_bytes - memory) >> 20:,} MB")
    if attack.refused is not None:
        answers = {status: text for status, text in outcome.examples.items() if status != "left"}  # at the very end
        said = [status for status, text in answers.items() if attack.refused not in text]
        problems += [f"{status} without {attack.refused!r}: {outcome.examples[status][:300]}" for status in said]
    counts = ", ".join(f"{status}: {count}" for status, count in sorted(outcome.counts.items()))
    grown = str(max(watch.most_bytes - memory, 0) >> 20)
    return [f"{attack.kind}: {attack.name}, {attack.clients} clients", counts, *told(measured), grown], problems
