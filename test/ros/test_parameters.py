"""vil_tracker_ros.parameters: the table declares, bounds and documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import rclpy
import yaml
from rclpy.node import Node

from vil_tracker_ros.parameters import TABLE, ParameterError, declare, readme_rows

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
        ],
    )
    def test_a_bad_value_is_named(self, value: str, words: str) -> None:
        node = node_with(value)
        with pytest.raises(ParameterError, match=words):
            declare(node)
        node.destroy_node()

    def test_every_parameter_is_described_and_fixed_at_start(self) -> None:
        node = node_with()
        declare(node)
        for row in TABLE:
            described = node.describe_parameter(row.name)
            assert row.description in described.description
            assert described.read_only
        node.destroy_node()


def test_the_readme_shows_this_table() -> None:
    assert readme_rows() in (ROOT / "README.md").read_text()


def test_the_shipped_parameter_file_holds_the_defaults() -> None:
    values = yaml.safe_load((ROOT / "config" / "tracker.yaml").read_text())["/**"]
    defaults = {row.name: row.default for row in TABLE}
    assert values["ros__parameters"].items() <= defaults.items()
