"""The samples as a TensorFlow dataset that TensorFlow is not needed for.

  source = samples("imu", "train")     # prepared on first use, then read from data_dir
  source[3]["imu"]                     # f32[100, 6]

Record i of a split is line i of its manifest. Strings come back as bytes,
as TFDS always gives them.
"""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from bind.data.samples import FOLDER
from bind.errors import DataError

TEXT = {"label": tfds.features.Text(), "text": tfds.features.Sequence(tfds.features.Text())}
ENCODED = tfds.features.Scalar(np.object_)  # an encoded file, byte for byte: TFDS has no 16-bit PNG
FEATURES = {
    "photos": {"image": tfds.features.Image(shape=(None, None, 3))},
    "depth": {
        "image": tfds.features.Image(shape=(None, None, 1)),
        "depth": ENCODED,  # PNG of u16[h, w]
        "focal_length_px": tfds.features.Scalar(np.float32),
        "baseline_m": tfds.features.Scalar(np.float32),
        "disparity_scale": tfds.features.Scalar(np.int32),
    },
    "sounds": {
        "image": tfds.features.Image(shape=(None, None, 3)),  # the photo of the same label
        "audio": ENCODED,  # FLAC
        "rate_hz": tfds.features.Scalar(np.int32),
    },
    "imu": {
        "imu": tfds.features.Tensor(shape=(100, 6), dtype=np.float32),
        "rate_hz": tfds.features.Scalar(np.int32),
    },
}


class BindSamples(tfds.core.GeneratorBasedBuilder):
    """The folder bind/data/samples, one builder config per modality."""

    code_path = Path(__file__)  # TFDS's own way to find it needs importlib_resources, not declared
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in FEATURES]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(FEATURES[self.builder_config.name] | TEXT)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Small real photos, stereo depth, sounds and watch motion with captions.",
            features=features,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        """The official splits of imu; else one split, which (TFDS reserves `all`) needs a name."""
        config = self.builder_config.name
        lines = read_manifest(config)
        groups = {}
        for line in lines:
            groups.setdefault(line.get("split", "samples"), []).append(line)
        return {split: self._generate_examples(group) for split, group in groups.items()}

    def _generate_examples(self, lines: list[dict]) -> Iterator[tuple[int, dict]]:
        names = FEATURES[self.builder_config.name] | TEXT
        for index, line in enumerate(lines):
            yield index, {name: _value(name, line) for name in names}


def read_manifest(config: str) -> list[dict]:
    """The lines of FOLDER/<config>.jsonl."""
    return [json.loads(line) for line in (FOLDER / f"{config}.jsonl").read_text().splitlines()]


def _value(name: str, line: dict):
    """What TFDS stores for one feature of a manifest line."""
    if name == "image":
        return io.BytesIO((FOLDER / line[name]).read_bytes())
    if name in ("depth", "audio"):
        return (FOLDER / line[name]).read_bytes()
    if name == "imu":
        with np.load(FOLDER / line[name]) as arrays:
            return arrays["imu"][line["index"]]
    return line[name]


def samples(config: str, split: str = "all", data_dir: str | Path | None = None) -> Sequence[dict]:
    """Random-access records of one modality, prepared once under data_dir.

    Args:
      config: photos, depth, sounds or imu.
      split: `all`; for imu also `train` and `test`.
      data_dir: where TFDS keeps its copy; its own default if None.
    """
    if config not in FEATURES:
        raise DataError(config, "no such samples", f"one of {', '.join(FEATURES)}")
    builder = BindSamples(config=config, data_dir=data_dir)
    builder.download_and_prepare(file_format="array_record")
    if split != "all" and split not in builder.info.splits:
        raise DataError(f"{config}/{split}", "no such split", "all; for imu also train, test")
    return builder.as_data_source(split=split)
