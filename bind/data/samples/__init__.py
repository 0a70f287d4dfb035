"""Small real data, shipped with the package: photographs, sounds, stereo depth, watch motion.

Each modality has a JSON-lines manifest whose paths are relative to FOLDER:

  photos.jsonl  image, label, text                                     one picture per line
  depth.jsonl   image, depth, camera, label, text, focal_length_px, baseline_m, disparity_scale
  sounds.jsonl  image, audio, label, text, rate_hz                     mono FLAC; photo of the label
  imu.jsonl     imu, index, label, text, split, rate_hz                row `index` of an .npz array

Every line also has licence, author and source. `text` holds two to four captions; `label` is the
concept that links the modalities: the label of a sound is the label of a photo. Depth is a 16-bit
PNG of disparity: depth_m = focal_length_px * baseline_m * disparity_scale / value, 0 = unknown.
Disparity and focal length are those of the 640x480 original; what is shipped is cropped and halved.
captions.model is a SentencePiece model trained on the captions (pad 0, unk 1, bos 2, eos 3).
CREDITS.md names the author, licence and source of every file; make.py rebuilds the folder.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
