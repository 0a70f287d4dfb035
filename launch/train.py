"""Train a config; start it again to resume.

  python -m launch.train --config configs/demo.py:tiny --workdir runs/tiny         # a minute on a
  laptop python -m launch.train --config configs/demo.py --workdir runs/demo
  --config.optim.learning_rate=3e-4

`--config FILE:VARIANT` names a file under configs/; `--config.field=value` overrides one of its
fields. The work directory gets metrics.jsonl, tensorboard/, checkpoints/ and config.json. Stopping
is safe at any time: Ctrl-C and SIGTERM save first (exit code 0), and after a kill the same command
goes on from the last checkpoint with the same losses. `python -m launch.list` shows the configs,
`python -m launch.doctor` the environment.

Several processes: the same command on each, with --coordinator host:port --num_processes N
--process_id I, or with --distributed where the cluster knows (TPU pods, SLURM).
"""

import json
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from bind import task, train
from bind.errors import ConfigError
from launch import cli

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", None, "The config file, such as configs/demo.py:tiny.", lock_config=True
)
flags.DEFINE_string("workdir", None, "Where the run lives. The same one resumes it.")
flags.mark_flags_as_required(["config", "workdir"])

TASKS = {"contrastive": task.contrastive}


def main() -> None:
    config = FLAGS.config
    if config.task not in TASKS:
        raise ConfigError("config.task", f"is {config.task!r}", f"one of {', '.join(TASKS)}")
    workdir = Path(FLAGS.workdir)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    train.fit(TASKS[config.task](config), config, workdir)


if __name__ == "__main__":
    cli.run(main)
