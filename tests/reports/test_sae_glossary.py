"""The one table of metrics: every path leads to a number, every definition is one to choose."""

import math
from typing import get_args

import pytest

from actcli.commands.sae_checks import Check, find_metrics
from actcli.commands.sae_options import MetricOptions
from actcli.reports.sae_glossary import FVU_DEFINITIONS, GROUPS, METRICS, value_at
from tests.render.sae_made import made_dictionary, made_reconstruction


def test_every_path_is_a_number_of_the_report():
    found = find_metrics([Check(path, "<", 1.0) for path in METRICS])
    assert [path for _check, path in found] == [*METRICS]


def test_no_two_are_called_or_named_alike():
    listed = [metric for group in GROUPS.values() for metric in group]
    assert len(listed) == len(METRICS) == len({each.label for each in listed})


def test_definitions_are_those_of_the_option():
    assert get_args(MetricOptions.model_fields["fvu_definition"].annotation) == (*FVU_DEFINITIONS,)


@pytest.mark.parametrize(
    ("name", "label", "words"),
    [
        ("centered", "1 - explained variance, centred", "sum var(e) / sum var(t)"),
        ("upstream", "FVU, one mean", "sum e^2 / sum (t - m)^2"),
    ],
)
def test_a_definition_is_told_as_an_fvu(name, label, words):
    assert FVU_DEFINITIONS[name].label == label
    assert FVU_DEFINITIONS[name].words.startswith(words)


def test_what_is_no_number_is_none():
    report = made_dictionary(reconstruction=made_reconstruction(0.3, fvu=math.nan, mse=math.inf))
    paths = ("reconstruction.fvu", "reconstruction.mse", "loss.ce_recovered")
    assert [value_at(report, path) for path in paths] == [None, None, None]
    assert value_at(report, "reconstruction.mae") == 0.3
