"""One config, any mesh: the losses are those of one device, also after a move half-way."""

import numpy as np
import pytest
import runs

STEPS, HALF = 20, 10
SAVES = {"save_every": HALF}
MESHES = {
    "one": dict(devices=1),
    "data": dict(mesh={"data": 8}),
    "fsdp": dict(mesh={"fsdp": 8}),
    "all": dict(mesh={"data": 2, "fsdp": 2, "tensor": 2}),
    "tensor": dict(mesh={"tensor": 4, "data": 2}),
}
BOUND = 1e-6  # relative


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("topologies")


@pytest.fixture
def made(folder):
    """made(name): the folder of the run on that mesh; each is made once."""

    def make(name):
        workdir = folder / name
        if not workdir.exists():
            if name == "pair":
                flags = [
                    f"--config.save_every={HALF}",
                    "--config.mesh.data=2",
                    "--config.mesh.fsdp=4",
                ]
                runs.finish(*runs.start_pair(workdir, *flags))
            else:
                runs.fit(workdir, SAVES, **MESHES[name])
        return workdir

    return make


def close(workdir, reference):
    losses, wanted = runs.losses(workdir), runs.losses(reference)
    assert len(losses) == len(wanted) == STEPS
    np.testing.assert_allclose(losses, wanted, rtol=BOUND)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("data", "tensor")]


@pytest.mark.parametrize("name", ["fsdp", "all", *SLOW])
def test_the_mesh_does_not_change_the_losses(name, made):
    close(made(name), made("one"))


def test_two_processes_of_four_devices_train_like_one_device(made):
    close(made("pair"), made("one"))


@pytest.mark.parametrize("source, target", [("fsdp", "all"), ("fsdp", "one"), ("pair", "fsdp")])
def test_a_run_goes_on_upon_another_mesh(source, target, made, tmp_path):
    workdir = runs.back_to(HALF, made(source), tmp_path / "run")
    runs.fit(workdir, SAVES, **MESHES[target])
    assert runs.history(workdir)[:HALF] == runs.history(made(source))[:HALF]
    close(workdir, made(source))
