"""load, embed, similarity, probabilities: from a run's folder to numbers."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bind
from bind import tree
from bind.ckpt.store import Store
from bind.data.samples import FOLDER
from bind.models.imagebind import example_inputs
from bind.zoo import ZOO, lookup

PHOTOS = [str(FOLDER / "photos" / f"{name}.webp") for name in ("dog", "cow", "cat")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with untrained parameters, the temperatures frozen as the demo has them."""
    folder = tmp_path_factory.mktemp("run")
    model = lookup("imagebind_demo").build()
    zeros = {n: jnp.zeros(s.shape, s.dtype) for n, s in example_inputs(model).items()}
    params = model.init(jax.random.key(0), zeros)["params"]
    learns, frozen = tree.partition(params, lambda path: path != "audio/logit_scale")
    with Store(folder / "checkpoints") as store:
        store.save(3, {"trainable": learns}, {"config": {"model": "imagebind_demo"}})
    with Store(folder / "frozen") as store:
        store.save(0, frozen, {})
    return folder, params


def test_load_puts_learned_and_frozen_leaves_together(run):
    folder, params = run
    model, loaded = bind.load("imagebind_demo", folder)
    assert set(model.towers) == {"vision", "text", "audio", "depth", "imu"}
    for path, leaf in tree.paths(params).items():
        np.testing.assert_array_equal(tree.paths(loaded)[path], leaf)
    only, part = bind.load("imagebind_demo", folder, only=("text",))
    assert set(part) == set(only.towers) == {"text"}


def test_embeddings_are_unit_length_and_alone_as_in_a_batch(run):
    model, params = bind.load("imagebind_demo", run[0])
    items = {
        "vision": PHOTOS,
        "text": ["a dog", "a cow"],
        "audio": [str(FOLDER / "sounds" / "dog_1.flac")],
        "imu": [np.ones((100, 6), np.float32)],
        "depth": [str(FOLDER / "depth" / "toy_left_disparity.png")],
    }
    z = bind.embed(model, params, items)
    assert {n: x.shape for n, x in z.items()} == {n: (len(v), 64) for n, v in items.items()}
    for x in z.values():
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
    alone = bind.embed(model, params, {"vision": PHOTOS[1:2]}, batch_size=4)
    np.testing.assert_allclose(alone["vision"][0], z["vision"][1], atol=1e-5)


def test_bytes_path_and_pixels_of_one_picture_embed_alike(run):
    from PIL import Image

    model, params = bind.load("imagebind_demo", run[0])
    path = Path(PHOTOS[0])
    same = [str(path), path.read_bytes(), np.asarray(Image.open(path).convert("RGB"))]
    z = [bind.embed(model, params, {"vision": [item]})["vision"] for item in same]
    np.testing.assert_array_equal(z[0], z[1])
    np.testing.assert_array_equal(z[0], z[2])


def test_probabilities_use_the_trained_temperature(run):
    _, params = run
    z = {"vision": np.eye(2, dtype=np.float32), "text": np.eye(2, dtype=np.float32)}
    p = bind.probabilities(params, z, "vision", "text")
    expected = 1 / (1 + np.exp(-1 / 0.07))
    np.testing.assert_allclose(np.diag(p), expected, rtol=1e-5)
    np.testing.assert_allclose(bind.probabilities(params, z, "text", "vision"), p, rtol=1e-5)
    with pytest.raises(bind.ConfigError, match="no temperature"):
        bind.probabilities({"vision": {}}, z, "vision", "vision")


def test_wrong_names_files_and_folders_are_told(run, tmp_path):
    folder = run[0]
    with pytest.raises(bind.ConfigError, match="did you mean 'imagebind_demo'"):
        bind.load("imagebind_dmo", folder)
    with pytest.raises(bind.CheckpointError, match="no checkpoints"):
        bind.load("imagebind_demo", tmp_path)
    model, params = bind.load("imagebind_demo", folder)
    with pytest.raises(bind.DataError, match=r"nothing\.png: no such file"):
        bind.embed(model, params, {"vision": ["nothing.png"]})
    with pytest.raises(bind.ConfigError, match="'smell'"):
        bind.embed(model, params, {"smell": ["x"]})
    with pytest.raises(bind.ConfigError, match="one item"):
        bind.embed(model, params, {"text": "a dog"})
    assert bind.embed(model, params, {"text": []})["text"].shape == (0, 64)


def test_a_run_of_another_model_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setitem(ZOO, "other", ZOO["imagebind_demo"])
    with pytest.raises(bind.CheckpointError, match="run of 'imagebind_demo', not 'other'"):
        bind.load("other", run[0])


def test_the_imported_bind_is_this_one_and_importing_it_is_light():
    """A PyPI package is called bind too; and nothing heavy may load with the name alone."""
    code = (
        "import sys, bind; print(bind.__file__);"
        "print([m for m in ('tensorflow', 'torch', 'grain', 'orbax', 'jax') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    where, loaded = out.strip().splitlines()
    assert Path(where).parent == Path(bind.__file__).parent == Path(__file__).parents[1] / "bind"
    assert loaded == "[]"


def test_the_face_lists_what_it_has():
    assert all(hasattr(bind, name) for name in bind.__all__)
    with pytest.raises(AttributeError, match="no attribute 'embd'"):
        bind.embd  # noqa: B018
