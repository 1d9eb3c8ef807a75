"""vil_tracker_ros.parameters: the table declares, bounds and documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import rclpy
import yaml
from rclpy.node import Node

from vil_tracker_ros.parameters import (
    STATES,
    TABLE,
    ParameterError,
    declare,
    readme_rows,
    validate_changes,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ros() -> Iterator[None]:
    rclpy.init()
    yield
    rclpy.shutdown()


def node_with(*values: str) -> Node:
    arguments = [part for value in values for part in ("-p", value)]
    return Node("table", cli_args=["--ros-args", *arguments])


@pytest.mark.usefixtures("ros")
class TestDeclare:
    def test_defaults(self) -> None:
        node = node_with()
        assert declare(node) == {row.name: row.default for row in TABLE}
        node.destroy_node()

    def test_values_given_at_the_start_win(self) -> None:
        node = node_with("max_tracks:=7", "patience:=2.5")
        values = declare(node)
        assert (values["max_tracks"], values["patience"]) == (7, 2.5)
        node.destroy_node()

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ("max_tracks:=0", "max_tracks"),
            ("confident:=1.5", "confident"),
            ("patience:=soon", "patience"),
            ("image_transport:=theora", "'theora' is not one of raw, compressed"),
            ("doubtful:=0.9", "doubtful must not be above confident"),
            ("confident:=.nan", "confident"),
            ("patience:=.inf", "patience"),
        ],
    )
    def test_a_bad_value_is_named(self, value: str, words: str) -> None:
        node = node_with(value)
        with pytest.raises(ParameterError, match=words):
            declare(node)
        node.destroy_node()

    def test_every_parameter_is_described(self) -> None:
        node = node_with()
        declare(node)
        for row in TABLE:
            described = node.describe_parameter(row.name)
            assert row.description in described.description
            assert described.read_only == (row.name == "autostart")
        node.destroy_node()


DEFAULTS = {row.name: row.default for row in TABLE}


class TestChanges:
    @pytest.mark.parametrize("state", STATES[:3])
    def test_thresholds_change_at_any_time(self, state: str) -> None:
        validate_changes(DEFAULTS, {"confident": 0.9, "doubtful": 0.8, "patience": 2.0}, state)

    def test_two_thresholds_are_judged_together(self) -> None:
        with pytest.raises(ParameterError, match="doubtful must not be above confident"):
            validate_changes(DEFAULTS, {"doubtful": 0.8}, "active")

    @pytest.mark.parametrize(
        ("name", "value", "state", "remedy"),
        [
            ("max_tracks", 2, "active", "deactivate it first"),
            ("weights", "x", "active", "deactivate and clean it up first"),
            ("weights", "x", "inactive", "deactivate and clean it up first"),
            ("patience", 1.0, "finalized", "start another"),
        ],
    )
    def test_a_change_that_comes_too_late_is_refused_with_the_remedy(
        self, name: str, value: object, state: str, remedy: str
    ) -> None:
        with pytest.raises(ParameterError, match=f"{name} cannot change .* {state}: .*{remedy}"):
            validate_changes(DEFAULTS, {name: value}, state)

    def test_a_choice_is_kept_to(self) -> None:
        with pytest.raises(ParameterError, match="'lossless' is not one of raw, compressed"):
            validate_changes(DEFAULTS, {"image_transport": "lossless"}, "inactive")


def test_the_readme_shows_this_table() -> None:
    assert readme_rows() in (ROOT / "README.md").read_text()


def test_the_shipped_parameter_file_holds_the_defaults() -> None:
    values = yaml.safe_load((ROOT / "config" / "tracker.yaml").read_text())["/**"]
    defaults = {row.name: row.default for row in TABLE}
    assert values["ros__parameters"].items() <= defaults.items()
