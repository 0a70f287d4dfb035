"""The demo, end to end: the tiny one always, the whole one by name (make test-slow)."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def demo(workdir, *args):
    command = [sys.executable, "-m", "launch.demo", "--workdir", str(workdir), *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_tiny_demo_draws_reports_and_the_readmes_lines_run_on_it(tmp_path):
    out = demo(tmp_path, "--config", "configs/demo.py:tiny")
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["rows"]) == 22
    never = {(r["from"], r["to"]) for r in report["rows"] if not r["trained"]}
    assert never == {("depth", "text"), ("text", "depth"), ("audio", "text"), ("text", "audio")}
    for name in ("loss.png", "similarity.png", "retrieval.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
        assert f"{tmp_path / name}" in out
    assert "right-hand third" in out and "never paired" in out

    embed = [sys.executable, "-m", "launch.embed", "--checkpoint", str(tmp_path), "a dog"]
    embed += ["bind/data/samples/photos/dog.webp", "--out", str(tmp_path / "z.npz")]
    printed = subprocess.run(embed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[1].split()[:4] == ["0", "a", "dog", "1.00"]
    assert (tmp_path / "z.npz").exists()

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    code = blocks[0].replace('"runs/demo"', repr(str(tmp_path)))
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)


@pytest.mark.slow
def test_the_demo_reaches_its_figures(tmp_path):
    demo(tmp_path)
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    imu = [r["value"] for r in rows if r["from"] == "imu" and r["metric"] == "zero-shot top-1"]
    assert imu[0] >= 0.9
    weak = [r for r in rows if r["set"] != "motion" and r["value"] < 3 * r["chance"]]
    assert weak == []
