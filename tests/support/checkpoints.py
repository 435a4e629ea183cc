"""On which checkpoints a test of the fixture `checkpoint` runs."""

import pytest

# The width of the network changes nothing there, and the other checkpoint takes ten times as long.
on_small = pytest.mark.parametrize("checkpoint", ["small"], indirect=True)
