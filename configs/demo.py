"""Five modalities bound on the sample data, small enough for two CPU cores.

  make demo                                                        # trains it and shows what it
  learned python -m launch.train --config configs/demo.py --workdir runs/demo
  python -m launch.train --config configs/demo.py:tiny --workdir runs/tiny       # about a minute
  python -m launch.train --config configs/demo.py --workdir runs/x --config.optim.learning_rate=1e-3

Pictures bind: depth and sounds are only ever paired with pictures, and pictures with words. Whether
a depth map finds its words, or a sound its words, was never trained and is measured on what is held
out: the right-hand third of every photograph, the right camera of the stereo rig (its pictures and
the depth maps computed for it), the last quarter of every sound, and the official test recordings
of the watch.
"""

from ml_collections import ConfigDict

LEFT, RIGHT = (0.0, 0.0, 0.62, 1.0), (0.66, 0.0, 1.0, 1.0)  # left, top, right, bottom


def pairs() -> dict:
    """Each step draws one of these, in proportion to the weights.

    `source` is a kind in bind/data/tables.py and its arguments; `fields` says which field of a
    record holds a modality; `train` and `test` which part of the data each may see. The second
    modality of a pair carries the temperature. `cache` keeps decoded records in memory.
    """

    def samples(name):
        return {"kind": "samples", "name": name}

    picture_parts = {
        "train": {"region": LEFT, "crop": (0.25, 1.0)},
        "test": {"region": RIGHT, "crop": (0.5, 1.0)},
    }
    camera_parts = {
        "train": {"where": {"camera": "left"}, "crop": (0.25, 1.0)},
        "test": {"where": {"camera": "right"}, "crop": (0.5, 1.0)},
    }
    return {
        "photos": {
            "modalities": ("vision", "text"), "source": samples("photos"),
            "weight": 2.0, "cache": True,
            "fields": {"vision": "image", "text": "text"}, **picture_parts,
        },
        "scenes": {
            "modalities": ("vision", "text"), "source": samples("depth"),
            "weight": 1.0, "cache": True,
            "fields": {"vision": "image", "text": "text"}, "train": camera_parts["train"],
        },
        "depth": {
            "modalities": ("vision", "depth"), "source": samples("depth"),
            "weight": 1.5, "cache": True,
            "fields": {"vision": "image", "depth": "depth", "text": "text"}, **camera_parts,
        },
        "players": {
            "modalities": ("vision", "text"), "source": samples("sounds"),
            "weight": 1.0, "cache": True,
            "fields": {"vision": "image", "text": "text"}, "train": picture_parts["train"],
        },
        "sounds": {
            "modalities": ("vision", "audio"), "source": samples("sounds"),
            "weight": 1.5, "cache": True,
            "fields": {"vision": "image", "audio": "audio", "text": "text"},
            "train": {**picture_parts["train"], "within": (0.0, 0.7)},
            "test": {**picture_parts["test"], "within": (0.75, 1.0)},
        },
        "motion": {
            "modalities": ("text", "imu"), "source": samples("imu"),
            "weight": 0.5, "cache": True,
            "fields": {"imu": "imu", "text": "text"},
            "train": {"where": {"split": "train"}}, "test": {"where": {"split": "test"}},
        },
    }  # fmt: skip


def get_config(variant: str = "") -> ConfigDict:
    """variant: "" or "tiny"."""
    if variant not in ("", "tiny"):
        raise ValueError(f"configs/demo.py has no variant {variant!r}; there is 'tiny'")
    config = ConfigDict()
    config.task = "contrastive"  # see launch/train.py
    config.model = "imagebind_demo"
    config.seed = 0
    config.steps = 700
    config.batch_size = 32
    config.accumulate = 1  # slices of a batch whose gradients are averaged, to save memory
    config.dtype = "float32"
    config.remat = "none"  # or "full", "dots": see bind/nn/transformer.py

    # Paths that learn. As in ImageBind only the text temperature does; the others are fixed.
    config.trainable = r"(?!(audio|depth|imu)/logit_scale).*"

    config.pairs = pairs()
    config.optim = {
        "learning_rate": 1e-3,
        "warmup": 50,
        "floor": 0.0,  # the learning rate at the end
        "b1": 0.9,
        "b2": 0.95,
        "weight_decay": 0.1,
        "clip": 1.0,  # global norm; 0 for none
        "lr_scale": (),  # ({"paths": regex, "factor": 0.1}, ...), first match wins
        "mu_dtype": "",  # "bfloat16" halves Adam's first moment
    }
    config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}  # -1: what is left of the devices
    config.data = {"threads": 1, "workers": 0}  # workers > 0: processes instead of threads
    config.eval = {"views": 4, "batch_size": 64}
    config.log_every = 50
    config.eval_every = 350  # 0: only at the end
    config.save_every = 350
    config.keep = 2  # checkpoints
    config.max_damaged = 10  # different unreadable records before the run stops
    config.max_skipped = 10  # non-finite steps in a row before the run stops

    if variant == "tiny":
        config.steps, config.batch_size = 60, 8
        config.optim.warmup = 5
        config.log_every, config.eval_every, config.save_every = 10, 30, 20
    return config.lock()
