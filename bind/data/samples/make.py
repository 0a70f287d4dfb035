"""Rebuild the samples from three public packages; nothing is downloaded here.

  python -m bind.data.samples.make --gcompris gcompris-qt-data_3.1-2_all.deb \
      --stereodemo stereodemo-0.7-py3-none-any.whl --aeon aeon-1.6.0-py3-none-any.whl --out DIR

Where they come from:
  gcompris-qt-data 3.1-2   Debian package:  apt-get download gcompris-qt-data=3.1-2
  stereodemo 0.7, aeon 1.6.0   PyPI:  pip download --no-deps stereodemo==0.7 aeon==1.6.0

What is taken, and the captions, stand in captions.json. The same versions of Pillow, OpenCV,
libsndfile, NumPy and SentencePiece write the same bytes; other versions write equivalent files.
It needs the extra packages of `pip install bind-jax[samples]`.
"""

import argparse
import io
import json
import re
from pathlib import Path

import numpy as np
import sentencepiece

from bind.data.samples import FOLDER, convert, unpack
from bind.data.samples.unpack import Credit
from bind.errors import DataError

SHA256 = {
    "gcompris": "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
    "stereodemo": "effd07da657295e834aa1b0c89cc962e953d66b506a75365ad32a1114f2389ec",
    "aeon": "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409",
}
LICENCES = {  # as the READMEs write them -> as the manifests do
    "Public Domain": "Public-Domain",
    "CC0-1.0": "CC0-1.0",
    "CC-BY 2.0": "CC-BY-2.0",
}
ACTIVITIES = [
    "explore_farm_animals",
    "explore_monuments",
    "explore_world_animals",
    "explore_world_music",
    "memory-sound",
]
MISSPELT = {"explore_monuments/germany/aulaPalatina.webp": "audaPalatina.webp"}  # in the README
BARKS = Credit(
    "Lionel Allorge, Yves Combe",
    "Free-Art-1.2",
    "https://invent.kde.org/education/gcompris, src/activities/memory-sound/resource/",
)
STEREO = Credit(
    "Nicolas Burrus", "CC-BY-4.0", "https://github.com/nburrus/stereodemo, datasets/oak-d/"
)
MOTION = Credit(
    "four students (BasicMotions), distributed by the aeon developers",
    "BSD-3-Clause",
    "https://github.com/aeon-toolkit/aeon, aeon/datasets/data/BasicMotions/",
)
SEARCH = {"donkey_toy": 48}  # disparities tried; with 128 the bars of the crib match too near
CHANGES = {
    "photos": "shrunk to a short side of 240 px, WebP",
    "depth": "images cropped, halved; disparity computed from the pair",
    "sounds": "mono, 16 kHz, cut to 17 s at most, FLAC",
    "imu": "text series stored as an array",
}


def credit_of(key: str, credits: dict[str, Credit]) -> Credit:
    """The credit of a GCompris file, its licence spelt our way; other licences are refused."""
    if key.startswith("memory-sound/LRBark"):
        return BARKS._replace(source=BARKS.source + key.rpartition("/")[2])
    folder, _, name = key.rpartition("/")
    found = credits.get(f"{folder}/{MISSPELT.get(key, name)}")
    if found is None or found.licence not in LICENCES:
        raise DataError(key, f"not free enough to ship: {found and found.licence}")
    return found._replace(licence=LICENCES[found.licence])


def gcompris_samples(rows, files, convert_one, path_field: str, extra: dict):
    """Convert the rows of captions.json that come from GCompris: (manifest, {path: bytes})."""
    credits = unpack.readme_credits(files)
    manifest, made = [], {}
    for row in rows:
        key = row["from"]
        made[row[path_field]] = convert_one(files[key])
        line = {name: row[name] for name in (path_field, "label", "text")}
        manifest.append(line | extra | credit_of(key, credits)._asdict())
    return manifest, made


def depth_samples(scenes: dict, files: dict[str, bytes]):
    """Stereo pairs to images and disparities: (manifest, {path: bytes})."""
    folder = "stereodemo/datasets/oak-d/"
    camera = json.loads(files[folder + "stereodemo_calibration.json"])
    manifest, made = [], {}
    for scene, row in scenes.items():
        left, right = (files[f"{folder}{scene}_{side}.png"] for side in ("left", "right"))
        geometry = {
            "focal_length_px": camera["fx"],
            "baseline_m": camera["baseline_meters"],
            "disparity_scale": convert.DISPARITY_SCALE,
        }
        for side, images in convert.stereo(left, right, SEARCH.get(scene, 128)).items():
            name = f"depth/{scene}_{side}"
            paths = {"image": f"{name}.png", "depth": f"{name}_disparity.png"}
            made.update(zip(paths.values(), images, strict=True))
            manifest.append(paths | {"camera": side} | row | geometry | STEREO._asdict())
    return manifest, made


def imu_samples(captions: dict, files: dict[str, bytes]):
    """BasicMotions to one .npz: (manifest, {path: bytes}). Train comes first, then test."""
    path, manifest, parts = "imu/basic_motions.npz", [], []
    for split in ("train", "test"):
        name = f"aeon/datasets/data/BasicMotions/BasicMotions_{split.upper()}.ts"
        motion, labels = convert.series(files[name].decode())
        parts.append((motion, labels, [split] * len(labels)))
    motion, labels, splits = (np.concatenate(part) for part in zip(*parts, strict=True))
    for index, (label, split) in enumerate(zip(labels.tolist(), splits.tolist(), strict=True)):
        line = {"imu": path, "index": index, "label": label, "text": captions[label]}
        manifest.append(line | {"split": split, "rate_hz": 10} | MOTION._asdict())
    out = io.BytesIO()
    np.savez_compressed(out, imu=motion, label=labels, split=splits, rate_hz=np.float32(10))
    return manifest, {path: out.getvalue()}


def tokenizer(manifests: dict[str, list], prompts: dict[str, list[str]]) -> bytes:
    """A SentencePiece model of 400 pieces, 256 of them bytes, for all captions and prompts."""
    sentences = []
    for name, manifest in manifests.items():
        sentences += [text for line in manifest for text in line["text"]]
        labels = sorted({line["label"] for line in manifest})
        sentences += [prompt.format(label) for prompt in prompts[name] for label in labels]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(dict.fromkeys(sentences)),
        model_writer=model,
        vocab_size=400,
        model_type="unigram",
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc_cf",
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def free_art_licence(text: str) -> str:
    """The licence as GCompris ships it, without its terminal escape codes."""
    text = re.sub(r"\x1b%G.*?\x1b%@", "-" * 40, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"


def credits_page(manifests: dict[str, list]) -> str:
    """CREDITS.md: a table per modality, then the licences and the files of this project."""
    parts = ["# Credits of the samples\n\nWritten by make.py from the manifests.\n"]
    for name, manifest in manifests.items():
        parts += [f"\n## {name}\n\nChanges made: {CHANGES[name]}.\n"]
        parts += ["\n| file | author | licence | source |\n|---|---|---|---|\n"]
        rows = {}
        for line in manifest:
            for field in ("image", "depth", "audio", "imu"):
                if field in line:
                    rows[line[field]] = (line["author"], line["licence"], line["source"])
        parts += [f"| {' | '.join((path, *row))} |\n" for path, row in rows.items()]
    return "".join(parts) + (FOLDER / "credits_tail.md").read_text()


def write(out: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        target = out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def build(gcompris: Path, stereodemo: Path, aeon: Path) -> dict[str, bytes]:
    """All files of the folder that are made and not written by hand: {path: bytes}."""
    games = unpack.gcompris(unpack.checked(gcompris, SHA256["gcompris"]), ACTIVITIES)
    pairs = unpack.wheel(unpack.checked(stereodemo, SHA256["stereodemo"]), "stereodemo/datasets/")
    motion = unpack.wheel(unpack.checked(aeon, SHA256["aeon"]), "aeon")
    captions = json.loads((FOLDER / "captions.json").read_text())
    rate = {"rate_hz": convert.RATE}
    made = {
        "photos": gcompris_samples(captions["photos"], games, convert.photo, "image", {}),
        "depth": depth_samples(captions["depth"], pairs),
        "sounds": gcompris_samples(captions["sounds"], games, convert.sound, "audio", rate),
        "imu": imu_samples(captions["imu"], motion),
    }
    manifests = {name: manifest for name, (manifest, _) in made.items()}
    files = {path: body for _, bodies in made.values() for path, body in bodies.items()}
    files["CREDITS.md"] = credits_page(manifests).encode()
    photo = {line["label"]: line["image"] for line in manifests["photos"]}
    manifests["sounds"] = [{"image": photo[x["label"]]} | x for x in manifests["sounds"]]
    for name, manifest in manifests.items():
        lines = [json.dumps(line, ensure_ascii=False) for line in manifest]
        files[f"{name}.jsonl"] = ("\n".join(lines) + "\n").encode()
    files["captions.model"] = tokenizer(manifests, captions["prompts"])
    files["sounds/LICENSE-FAL.txt"] = free_art_licence(
        games["memory-sound/Licence.txt"].decode()
    ).encode()
    files["imu/LICENSE-BSD-3.txt"] = motion["aeon-1.6.0.dist-info/licenses/LICENSE"]
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("gcompris", "stereodemo", "aeon", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    files = build(args.gcompris, args.stereodemo, args.aeon)
    write(args.out, files)
    size = sum(map(len, files.values()))
    print(f"{len(files)} files, {size / 1e6:.2f} MB in {args.out}")


if __name__ == "__main__":
    main()
