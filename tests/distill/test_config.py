"""The configuration of training: defaults as published, every problem at once, files that read
back."""

import json
import tomllib
from pathlib import Path

import pytest
from annotated_types import Ge, Gt, Le, Lt

from std_cli.distill.config import (
    DistillConfig,
    config_hash,
    differing_keys,
    load_config,
    make_config,
    template,
    to_toml,
)
from std_cli.distill.dry_run import write_template
from std_cli.errors import InputError
from std_cli.weights.files import read_object
from std_cli.weights.resolve import TINY

SCHEMA = Path(__file__).parents[2] / "examples" / "distill.schema.json"


def test_published_values():
    i2i, v2v = make_config({}), make_config({"run": {"task": "v2v"}})
    for c in (i2i, v2v):
        assert (c.run.seed, c.run.epochs, c.run.save_every) == (453645634, 10, 500)
        assert (c.lora.rank, c.lora.alpha, c.lora.dropout, len(c.lora.targets)) == (64, 64, 0, 14)
        assert (c.distill.points, c.distill.w_min, c.distill.w_max, c.distill.huber_c) == (
            50,
            5,
            15,
            0.001,
        )
        assert (c.bank.length, c.bank.rate, c.bank.retire_at) == (4, 0.8, 1)
        assert (c.optimizer.lr, c.optimizer.warmup_steps, c.optimizer.clip) == (5e-6, 500, 10)
        assert (c.adversarial.lr, c.adversarial.gradient_penalty, c.adversarial.mode) == (
            1e-4,
            1e-5,
            "xs-xr",
        )
        assert c.data.size == (512, 512) and c.data.stride == 4
    assert (i2i.data.frames, i2i.distill.range_rate, i2i.adversarial.weight, i2i.distill.head) == (
        1,
        0.5,
        0.7,
        "raw",
    )
    assert (v2v.data.frames, v2v.distill.range_rate, v2v.adversarial.weight, v2v.distill.head) == (
        8,
        0.3,
        0.5,
        "learn",
    )


def test_all_problems_in_one_line_in_the_files_own_spelling():
    given = {
        "run": {"sead": 1},
        "distill": {"eta": 1.5, "points": 7},
        "data": {"size": [100, 64]},
        "optimiser": {},
        "bank": {"rate": "much"},
    }
    with pytest.raises(InputError) as error:
        make_config(given, "run.toml")
    message = str(error.value)
    assert "\n" not in message and message.startswith("run.toml: ")
    for part in ("run.sead 1: no such key", "distill.eta 1.5: must be", "data.size [100, 64]",
    "optimiser: no such key",
                 'bank.rate "much": must be'):  # fmt: skip
        assert part in message


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"distill": {"points": 7}}, "distill.points 7: must divide 1000"),
        ({"distill": {"eta": 0.01}}, "distill.eta 0.01: leaves fewer than two points"),
        ({"distill": {"w_min": 9, "w_max": 8}}, "distill.w_min 9.0: must not be above w_max"),
        ({"data": {"frames": 8}}, "data.frames 8: is 1 for task i2i"),
        (
            {"run": {"task": "v2v"}, "model": {"motion": "none"}},
            "model.motion none: task v2v needs",
        ),
        (
            {"run": {"task": "v2v"}, "data": {"frames": 1}},
            "data.frames 1: must be 2 or more for task v2v",
        ),
        (
            {"export": {"weights": "average"}, "distill": {"ema": 0}},
            "export.weights average: there is none where",
        ),
    ],
)
def test_what_does_not_go_together(given, problem):
    with pytest.raises(InputError, match=problem):
        make_config(given)


def test_changes_on_the_command_line(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[distill]\neta = 0.65\n")
    c = load_config(
        path, ["distill.mode=tcd", "data.size=[64, 96]", "run.output=a b", 'run.push="me/x"']
    )
    assert (c.distill.eta, c.distill.mode, c.data.size, c.run.output, c.run.push) == (
        0.65,
        "tcd",
        (64, 96),
        "a b",
        "me/x",
    )
    for change in ("eta", "distill=1", "distill.eta"):
        with pytest.raises(InputError, match="write it as section.key=value"):
            load_config(path, [change])
    path.write_text("[distill\n")
    with pytest.raises(InputError, match="is not TOML"):
        load_config(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path / "none.toml")


@pytest.mark.parametrize("task", ["i2i", "v2v"])
@pytest.mark.parametrize("model", ["sdxl", "tiny"])
def test_a_template_is_a_whole_configuration(task, model):
    pack = read_object(TINY / "std.json") if model == "tiny" else None
    text = template(task, model, pack)
    c = make_config(tomllib.loads(text))
    assert (c.run.task, c.model.name) == (task, model)
    if model == "sdxl":
        assert config_hash(c) == config_hash(make_config({"run": {"task": task}}))
    for section, fields in DistillConfig.model_fields.items():
        assert f"[{section}]" in text
        assert all(
            f"\n{key} =" in text or f"\n# {key} =" in text for key in fields.annotation.model_fields
        )
    assert make_config(tomllib.loads(to_toml(c))) == c


def test_a_template_replaces_nothing(tmp_path):
    path = tmp_path / "run.toml"
    assert str(path) in write_template(path, "i2i", "tiny")
    with pytest.raises(InputError, match="exists"):
        write_template(path, "i2i", "tiny")


def test_what_tells_runs_apart():
    a, b = make_config({}), make_config({"distill": {"eta": 0.65}, "bank": {"rate": 0.5}})
    assert differing_keys(a, b) == ["distill.eta", "bank.rate"]
    assert config_hash(a) != config_hash(b)
    elsewhere = make_config(
        {"run": {"output": "x", "max_steps": 3}, "data": {"workers": 1}, "model": {"device": "cpu"}}
    )
    assert not differing_keys(a, elsewhere) and config_hash(a) == config_hash(elsewhere)
    # keys that name files count by the files' contents, and lanes by their number
    named = {"data": {"sources": ["x"]}, "model": {"name": "x"}, "style": {"folder": "x"}}
    named |= {
        "adversarial": {"features": "x"},
        "optimizer": {"accumulation": 8},
        "export": {"weights": "average"},
    }
    assert not differing_keys(a, make_config(named))


def test_the_schema_for_editors_is_this_configurations():
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == DistillConfig.model_json_schema()


NUMBERS = [
    (section, key)
    for section, fields in DistillConfig()
    for key, value in fields
    if isinstance(value, int | float) and not isinstance(value, bool)
]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e400", "9" * 400, "9" * 5000])
def test_numbers_without_measure(tmp_path, value):
    """In the file and in --set: one line that names the key, and is not as long as the value."""
    file = tmp_path / "run.toml"
    file.write_text("")
    assert len(NUMBERS) > 30
    for section, key in [*NUMBERS, ("run", "max_steps")]:
        with pytest.raises(InputError, match=rf"{section}\.{key}") as error:
            load_config(file, [f"{section}.{key}={value}"])
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
    for pair in ("optimizer.betas", "data.size"):
        with pytest.raises(InputError, match=pair):
            load_config(file, [f"{pair}=[{value}, {value}]"])
    file.write_text(f"[lora]\nalpha = {value}\n")
    with pytest.raises(InputError, match=r"lora\.alpha|digits"):
        load_config(file)


def test_the_tightest_bound_of_a_number_holds():
    """A type has bounds and its field may have others: of two of a kind the model obeys one."""
    tried = set()
    for section, fields in DistillConfig():
        for key, field in type(fields).model_fields.items():
            least = [b.ge for b in field.metadata if isinstance(b, Ge)]
            most = [b.le for b in field.metadata if isinstance(b, Le)]
            beyond = ([max(least) - 1] if least else []) + ([min(most) + 1] if most else [])
            beyond += [b.gt for b in field.metadata if isinstance(b, Gt)]
            beyond += [b.lt for b in field.metadata if isinstance(b, Lt)]
            for value in beyond:
                with pytest.raises(InputError, match=rf"{section}\.{key}"):
                    make_config({section: {key: value}})
                tried.add(key)
    assert {"batch", "save_every", "validate_every", "phases", "rate"} <= tried
