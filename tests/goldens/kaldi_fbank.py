"""Cuts kaldi_fbank.npz out of a larger file of outputs of torchaudio.compliance.kaldi.fbank.

    python tests/goldens/kaldi_fbank.py ORACLE.npz

The values came from torchaudio.compliance.kaldi.fbank as ImageBind's loader calls it (htk_compat,
16 kHz, no energy, Hann window, 128 bins, no dither, 10 ms shift; then (x + 4.268) / 9.138), which
does not import without torch. ORACLE.npz holds wav/NAME f32[C, N] and mel/NAME f32[1, 128, 204].
Kept are half a second of noise and 0.3 s of a chirp: frames see only their own samples, so a cut of
the sound is a cut of the mel.
"""

import pathlib
import sys

import numpy as np

KEEP = {"short_0p5s": (8000, 48), "chirp": (4800, 28)}  # samples, and the frames these make

if __name__ == "__main__":
    oracle, arrays = np.load(sys.argv[1]), {}
    for name, (samples, frames) in KEEP.items():
        arrays[f"wav/{name}"] = oracle[f"wav/{name}"][:1, :samples]
        arrays[f"mel/{name}"] = oracle[f"mel/{name}"][0, :, :frames]
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)
