"""Settings out of range are named with their range; settings left out are chosen by the checkpoint and the data."""

import dataclasses
import math
import re
from typing import Any

import pytest

from container.make_openapi import ROOT
from lab.tuning.asked import BY_DEFAULT, MOST_LOST
from lab.tuning.recipe import Recipe, TuningError


@pytest.mark.parametrize("field", dataclasses.fields(Recipe), ids=lambda field: field.name)
def test_every_setting_has_a_range(field: "dataclasses.Field[Any]") -> None:
    name, (low, high) = field.name, field.metadata["range"]
    value: Any
    for value in (low, high):
        Recipe(**{name: value})
    given: list[Any] = [low - 1, high * 2 + 1, math.nan, math.inf, -math.inf]
    for value in given:
        with pytest.raises(TuningError, match=rf"^--{name.replace('_', '-')}: it is \S+; give [\d.,e-]+ to [\d.,e-]+"):
            Recipe(**{name: value})


def test_settings_left_out_are_chosen_by_size_and_kind() -> None:
    small, large = (Recipe().chosen(parameters, is_labels=False) for parameters in (4_994_496, 307_581_696))
    assert (small.learning_rate, large.learning_rate) == (2e-4, 2e-5)
    assert small.distill == 0 and Recipe().chosen(1, is_labels=True).distill == 5
    given = Recipe(learning_rate=1e-4, distill=0)
    assert given.chosen(1, is_labels=True) == given


def test_the_page_has_every_setting_with_its_default() -> None:
    page = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `--([\w-]+)` \| ([^|]+) \|", page, re.MULTILINE)
    settings = Recipe().as_dict() | BY_DEFAULT | {"max_loss": MOST_LOST}
    assert {name: each.replace(",", "") for name, each in rows} == {
        name.replace("_", "-"): f"{value:g}" if isinstance(value, float) else str(value).replace(",", "")
        for name, value in settings.items()
    }
