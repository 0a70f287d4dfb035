import importlib.util
from pathlib import Path

import pytest

from bind import settings
from bind.errors import ConfigError

PATH = Path(__file__).parents[1] / "configs" / "demo.py"


@pytest.fixture
def config():
    spec = importlib.util.spec_from_file_location("demo", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("tiny").unlock()


def test_the_demos_config_passes(config):
    settings.check(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "config.steps: is 0 .*at least 1"),
        ("batch_size", 1, "needs a negative"),
        ("dtype", "float33", "config.dtype: is 'float33'"),
        ("dtype", "int32", "floating-point"),
        ("remat", "some", "one of none, full, dots"),
        ("log_every", True, "config.log_every: is True"),
        ("keep", 1.5, "config.keep: is 1.5"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(config, field, value, message):
    config = type(config)({**config.to_dict(), field: value})
    with pytest.raises(ConfigError, match=message):
        settings.check(config)


def test_a_missing_field_says_what_it_would_be(config):
    del config.optim.clip
    with pytest.raises(ConfigError, match=r"config\.optim\.clip: is missing .*at least 0"):
        settings.check(config)


def test_changes_are_listed_by_field_and_tuples_are_lists():
    old = {"a": {"x": 1, "y": (1, 2)}, "b": 2}
    assert settings.changes(old, {"a": {"x": 1, "y": [1, 2]}, "b": 2}) == []
    assert settings.changes(old, {"a": {"x": 3, "y": (1, 2)}}) == [
        "config.a.x was 1, is 3", "config.b was 2, is None",
    ]  # fmt: skip
