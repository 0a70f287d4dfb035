"""Multimodal binding in JAX: one embedding space for pictures, words, sound, depth and motion.

    import bind
    model, params = bind.load("imagebind_demo", "runs/demo")
    z = bind.embed(model, params, {"vision": ["a.jpg"], "audio": ["b.wav"], "text": ["a dog"]})
    bind.similarity(z["vision"], z["text"])               # f32[1, 1], cosine
    bind.probabilities(params, z, "vision", "text")       # with the checkpoint's temperature

`bind.ZOO` lists the models by name. The definitions live in `bind.models`, the layers in `bind.nn`.
"""

from typing import TYPE_CHECKING

from bind.errors import BindError, CheckpointError, ConfigError, DataError, TrainingError

if TYPE_CHECKING:
    from bind.embedding import embed, probabilities, similarity
    from bind.zoo import ZOO, load

__version__ = "0.1.0"
__all__ = [
    "ZOO", "BindError", "CheckpointError", "ConfigError", "DataError", "TrainingError",
    "embed", "load", "probabilities", "similarity",
]  # fmt: skip


def __getattr__(name: str):
    # The data and checkpoint libraries load with the first use, so that `import bind` stays light.
    if name in ("ZOO", "load"):
        from bind import zoo

        return getattr(zoo, name)
    if name in ("embed", "probabilities", "similarity"):
        from bind import embedding

        return getattr(embedding, name)
    raise AttributeError(f"module 'bind' has no attribute {name!r}")
