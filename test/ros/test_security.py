"""config/sros2/policy.xml against a running node: neither more nor less than it really has."""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ground import Ground, together

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "config" / "sros2" / "policy.xml"


@pytest.fixture(scope="module")
def policy() -> ET.Element:
    return ET.parse(POLICY).getroot()


def allowed(policy: ET.Element, node: str, kind: str, what: str) -> set[str]:
    """Full names of the topics or services that a profile allows."""
    profile = policy.find(f".//profile[@node='{node}']")
    assert profile is not None
    names = set()
    for group in profile.findall(f"{kind}[@{what}='ALLOW']"):
        for item in group:
            name = (item.text or "").replace("~", f"/{node}")
            names.add(name if name.startswith("/") else f"/{name}")
    return names


@pytest.fixture
def pair(domain: int, tiny: str) -> Iterator[tuple[Ground, Any]]:
    with together(tiny, "backend:=torch") as (ground, tracker):
        assert tracker.start()
        yield ground, tracker


def names(found: list[tuple[str, list[str]]]) -> set[str]:
    return {name for name, _ in found}


def test_the_policy_is_the_nodes_graph(pair: tuple[Ground, Any], policy: ET.Element) -> None:
    ground, tracker = pair
    node = "vil_tracker"
    published = allowed(policy, node, "topics", "publish")
    subscribed = allowed(policy, node, "topics", "subscribe")
    answered = allowed(policy, node, "services", "reply")
    ground.until(
        lambda: names(tracker.get_publisher_names_and_types_by_node(node, "/")) == published,
        f"these publishers: {sorted(published)}",
    )
    found = names(tracker.get_subscriber_names_and_types_by_node(node, "/"))
    assert found | {"/clock"} == subscribed
    assert names(tracker.get_service_names_and_types_by_node(node, "/")) == answered


def test_the_ground_station_sees_results_only(policy: ET.Element) -> None:
    node = "ground_station"
    results = allowed(policy, "vil_tracker", "topics", "publish")
    assert allowed(policy, node, "topics", "subscribe") < results
    assert allowed(policy, node, "topics", "publish") == {"/rosout", "/parameter_events"}
    assert allowed(policy, node, "services", "request") == {"/init_track", "/stop_track"}


def test_nothing_is_evaluated_and_nothing_unpickled() -> None:
    """Neither by name nor through torch.load, in all that is installed."""
    for path in [*ROOT.glob("vil_tracker_ros/*.py"), *ROOT.glob("vil_tracker_core/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "compile", "__import__"}, path
                safe = any(k.arg == "weights_only" for k in node.keywords)
                assert called != "torch.load" or safe, f"{path}: torch.load without weights_only"
                assert not called.startswith(("yaml.load", "yaml.unsafe_load")), path
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                assert not modules & {"pickle", "dill", "marshal", "shelve"}, path
