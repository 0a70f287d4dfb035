"""From a record to what a tower takes, per modality. A zoo row names these, so that training,
embedding, evaluation and notebooks prepare their inputs in one way.

An input has three stages: `decode` (the same whatever is done next, so it can be cached), `cut`
(which part of it: a random one for training, a fixed one else) and `finish` (numbers as the tower
wants them).
"""

import dataclasses
from collections.abc import Iterable, Mapping

from bind.data.audio import DecodeAudio, LogMel, RandomClip, UniformClips
from bind.data.imu import CenterWindow, RandomWindow, ReadImu, Standardize
from bind.data.records import Keep, Rename
from bind.data.text import FirstCaption, PickCaption, Tokenize
from bind.data.vision import (
    CLIP_MEAN,
    CLIP_STD,
    CenterCrop,
    DecodeDisparity,
    DecodeImage,
    Normalize,
    NormalizeDepth,
    RandomCrop,
    RandomFlip,
    Region,
    Resize,
)
from bind.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Picture:
    """RGB, f32[size, size, 3]."""

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    spatial = True

    def decode(self, key):
        return [DecodeImage(key)]

    def finish(self, key):
        return [Normalize(self.mean, self.std, key=key)]


@dataclasses.dataclass(frozen=True)
class Disparity:
    """Disparity in pixels from a grey PNG of 16 bits, f32[size, size, 1]. See NormalizeDepth."""

    size: int
    scale: float
    mean: float
    std: float
    high: float
    spatial = True

    def decode(self, key):
        return [DecodeDisparity(key, self.scale)]

    def finish(self, key):
        return [NormalizeDepth(self.mean, self.std, high=self.high, key=key)]


@dataclasses.dataclass(frozen=True)
class Sound:
    """Log-mel spectrograms of `seconds`, f32[bins, frames, 1]; of a whole sound, `clips` of them
    in front.
    """

    seconds: float
    bins: int
    frames: int
    clips: int = 3
    mean: float = -4.268
    std: float = 9.138
    spatial = False

    def decode(self, key):
        return [DecodeAudio(key)]

    def cut(self, key, train, within):
        if train:
            return [RandomClip(self.seconds, within, key=key)]
        return [UniformClips(self.clips, self.seconds, within, key=key)]

    def finish(self, key):
        return [LogMel(self.bins, self.frames, self.mean, self.std, key=key)]


@dataclasses.dataclass(frozen=True)
class Motion:
    """Accelerometer and gyroscope f32[length, 6], in an .npz file, row `index` where it has many.

    mean and std are those of the training recordings, in their units; the recordings' rate is the
    model's.
    """

    length: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    spatial = False

    def decode(self, key):
        return [ReadImu(key, index="index")]

    def cut(self, key, train, within):
        return [RandomWindow(self.length, key=key) if train else CenterWindow(self.length, key=key)]

    def finish(self, key):
        return [Standardize(self.mean, self.std, key=key)]


@dataclasses.dataclass(frozen=True)
class Words:
    """Token ids i32[length] of one of the captions: a random one for training, else the first."""

    tokenizer: str
    length: int
    spatial = False

    def decode(self, key):
        return []

    def cut(self, key, train, within):
        return [PickCaption(key) if train else FirstCaption(key)]

    def finish(self, key):
        return [Tokenize(self.tokenizer, self.length, key=key)]


def decoders(inputs: Mapping, fields: Mapping[str, str]) -> list:
    """The deterministic first stage: each record field, decoded, under its modality's name.

    inputs: {modality: input}. fields: {modality: field of the record}.
    """
    steps = [Rename(**{field: name for name, field in fields.items() if field != name})]
    for name in fields:
        if name not in inputs:
            raise ConfigError(
                f"modality {name!r}", "is not one of this model's", f"it has {sorted(inputs)}"
            )
        steps += inputs[name].decode(name)
    return steps


def finishers(
    inputs: Mapping,
    names: Iterable[str],
    *,
    train: bool,
    region: tuple[float, float, float, float] = (0, 0, 1, 1),
    within: tuple[float, float] = (0, 1),
    crop: tuple[float, float] = (0.3, 1.0),
    keep: tuple[str, ...] = (),
) -> list:
    """The rest: which part, then the numbers.

    Pictures of one record (an image and its depth) get the same crop and flip.

    Args:
      region: left, top, right, bottom of the part of every picture that may be seen, as fractions.
      within: from, to of every sound that may be heard, as fractions.
      crop: area of a random crop, as fractions of the region.
      keep: fields that ride along beside the modalities, such as a label.
    """
    names = tuple(names)
    pictures = tuple(name for name in names if inputs[name].spatial)
    steps = []
    if pictures:
        sizes = {inputs[name].size for name in pictures}
        if len(sizes) > 1:
            raise ConfigError(
                f"modalities {pictures}",
                f"have the sizes {sorted(sizes)}",
                "aligned pictures share one",
            )
        size = sizes.pop()
        if tuple(region) != (0, 0, 1, 1):
            steps.append(Region(*region, keys=pictures))
        if train:
            steps += [RandomCrop(size, crop, keys=pictures), RandomFlip(keys=pictures)]
        else:
            steps += [Resize(size, keys=pictures), CenterCrop(size, keys=pictures)]
    for name in names:
        if name not in pictures:
            steps += inputs[name].cut(name, train, tuple(within))
        steps += inputs[name].finish(name)
    return [*steps, Keep(*names, *keep)]
