"""launch.list: what it lists is what there is, and what is wrong is said."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from bind import tree, zoo
from bind.data.tables import SOURCES
from bind.errors import ConfigError
from bind.models import imagebind
from launch import list as listing

ROOT = Path(__file__).parents[2]
NAME = "imagebind_demo"


def program(*args):
    command = [sys.executable, "-m", "launch.list", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def everything():
    found, lines = listing.answer()
    return found, "\n".join(lines)


def test_every_model_is_listed(everything):
    found, text = everything
    assert [row["name"] for row in found["models"]] == list(zoo.ZOO)
    entry = zoo.ZOO[NAME]
    row = next(row for row in found["models"] if row["name"] == NAME)
    assert row["parameters"] == sum(row["parameters_of"].values())
    assert set(row["modalities"]) == set(row["parameters_of"]) == set(entry.inputs)
    assert f"{row['parameters']:,}" in text and entry.licence in text and entry.source in text


def test_parameters_are_counted_right_and_without_any_array(monkeypatch):
    def build(**options):
        return imagebind.imagebind(imagebind.HUGE, **options)

    monkeypatch.setattr(zoo, "ZOO", {"huge": zoo.ZOO[NAME]._replace(build=build)})
    before = len(jax.live_arrays())
    (row,) = listing.models()
    # The published model's; upstream keeps four of the five temperatures as buffers.
    assert row["parameters"] - 4 == 1_200_781_057
    assert len(jax.live_arrays()) <= before + 1  # the key


def test_the_sample_manifests_and_all_source_kinds_are_listed(everything):
    found, text = everything
    lines = (ROOT / "bind/data/samples/photos.jsonl").read_text("utf-8").splitlines()
    photos = next(row for row in found["data"] if row["name"] == "photos")
    assert photos["records"] == len(lines) and photos["fields"][:3] == ["image", "label", "text"]
    assert {row["name"] for row in found["data"]} == {"photos", "depth", "sounds", "imu"}
    assert [row["kind"] for row in found["sources"]] == list(SOURCES)
    about = {row["kind"]: row["about"] for row in found["sources"]}
    assert about["csv"] == SOURCES["csv"].__doc__.splitlines()[0]
    assert all(about.values()) and "delimiter=','" in text


def test_configs_are_listed_with_their_variants(everything):
    found, text = everything
    rows = {row["file"]: row for row in found["configs"]}
    assert set(rows) == {f"configs/{p.name}" for p in (ROOT / "configs").glob("[!_]*.py")}
    demo = rows["configs/demo.py"]
    assert [entry["variant"] for entry in demo["variants"]] == ["", "tiny"]
    assert demo["variants"][1]["steps"] < demo["variants"][0]["steps"]
    assert demo["about"] in text and ":tiny" in text and "FAILS" not in text


def test_a_config_that_fails_is_listed_with_its_error(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    (tmp_path / "half.py").write_text(
        '"""Half."""\ndef get_config(v=""):\n    """v: "" or "big"."""\n'
        '    if v == "big":\n        raise OSError("no such disk")\n'
        '    return {"steps": 3}\n'
    )
    rows = listing.configs(tmp_path)
    assert [row["about"] for row in rows] == ["", "Half."]
    assert "SyntaxError" in rows[0]["variants"][0]["error"]
    plain, big, tiny = rows[1]["variants"]
    assert plain == {"variant": "", "steps": 3} and tiny["variant"] == "tiny"
    assert big["error"] == "OSError: no such disk"
    assert "FAILS: OSError: no such disk" in "\n".join(listing.show_configs(rows))


def test_paths_are_those_that_config_trainable_matches():
    regex = "(vision|text)/projection/.*"
    found, lines = listing.answer(NAME, regex)
    params = listing.param_shapes(NAME)
    learn, frozen = tree.partition(params, tree.matcher(regex))
    assert [row["path"] for row in found["paths"]] == list(tree.paths(params))
    assert found["totals"]["learn"] == tree.size(learn) > 0
    assert found["totals"]["frozen"] == tree.size(frozen) > 0
    lines = list(lines)
    marked = [line.split()[1] for line in lines if line.startswith("* ")]
    assert marked == list(tree.paths(learn))
    described = dict(line.split("  ", 1) for line in tree.describe(params))
    assert lines[0].split(maxsplit=1) == ["audio/cls", described["audio/cls"]]


def test_without_a_regex_nothing_is_marked():
    found, lines = listing.answer(NAME)
    assert "learn" not in found["totals"]
    assert not any(line.startswith(("* ", "  learn")) for line in lines)


@pytest.mark.parametrize(
    ("model", "match", "says"),
    [
        ("imagebind_dem", None, "did you mean 'imagebind_demo'"),
        (NAME, "nothing/.*", "matches no parameter"),
        (NAME, "projection", "matches a part of audio/projection/kernel"),
        (NAME, "(", "is not a regex"),
        (None, ".*", "add --paths MODEL"),
    ],
)
def test_what_cannot_be_answered_says_why(model, match, says):
    with pytest.raises(ConfigError) as error:
        listing.answer(model, match)
    assert says in str(error.value)


def test_the_program_prints_json_and_one_sentence_for_an_error():
    shown = json.loads(program("--paths", NAME, "--match", "text/.*", "--json").stdout)
    assert shown["totals"]["learn"] == sum(r["size"] for r in shown["paths"] if r["learns"])
    wrong = program("--paths", "imagebnd")
    assert wrong.returncode == 1 and wrong.stdout == ""
    assert wrong.stderr.strip().startswith("ConfigError: model 'imagebnd'")
