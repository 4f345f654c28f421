"""examples/automation.md names every event that the code tells, with its keys."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(\w+)` \|(.*)\|$", re.MULTILINE)


def events_of_the_document() -> dict[str, set[str]]:
    """{event: its keys, and the stages of progress} by the dictionaries in the code that have an
    "event"."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "std_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Dict):
                continue
            pairs = [
                (k.value, v)
                for k, v in zip(node.keys, node.values, strict=True)
                if isinstance(k, ast.Constant)
            ]
            facts = {name: value.value for name, value in pairs if isinstance(value, ast.Constant)}
            if isinstance(facts.get("event"), str):
                stage = {facts["stage"]} if "stage" in facts else set()
                found.setdefault(facts["event"], set()).update(
                    {str(name) for name, _ in pairs} | stage
                )
    return found


def test_every_event_is_documented_with_its_keys():
    text = (ROOT / "examples" / "automation.md").read_text(encoding="utf-8")
    documented: dict[str, set[str]] = {}
    for event, keys in ROW.findall(text.replace("| `event` | keys |", "")):
        documented.setdefault(event, set()).update(re.findall(r"`(\w+)`", keys))
    events = events_of_the_document()
    assert len(events) > 12 and {"load", "picture", "pull", "distill"} <= events["progress"]
    lacking = {
        event: keys - {"event"} - documented.get(event, set()) for event, keys in events.items()
    }
    assert events.keys() == documented.keys()
    assert {event: keys for event, keys in lacking.items() if keys} == {}
