"""What the programs share: errors as one sentence, the compilation cache, several processes."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, flags, logging

from bind.errors import BindError, ConfigError

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, where a job has several processes."
)
flags.DEFINE_integer("num_processes", None, "How many processes the job has.")
flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.")
flags.DEFINE_bool(
    "distributed", False, "Find the other processes by the cluster (TPU pod, SLURM, MPI)."
)


def compilation_cache() -> Path:
    """Turns on the persistent compilation cache and returns its folder.

    JAX_COMPILATION_CACHE_DIR chooses another one.
    """
    folder = (
        os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path.home() / ".cache" / "bind-jax" / "xla"
    )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return Path(folder)


def join_processes() -> None:
    """Connects to the other processes of the job, if the flags ask for it; before any array.

    Raises: ConfigError where a process cannot be reached within five minutes.
    """
    given = [FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id]
    if not FLAGS.distributed and given == [None] * 3:
        return
    if not FLAGS.distributed and None in given:
        raise ConfigError(
            "--coordinator, --num_processes, --process_id", "go together", "or pass --distributed"
        )
    try:
        jax.distributed.initialize(*given)
    except (RuntimeError, ValueError) as error:
        where = FLAGS.coordinator or "the cluster's coordinator"
        raise ConfigError(
            where, f"not all processes joined: {error}", "start the command on every host"
        ) from error


def run(main: Callable, positional: bool = False) -> None:
    """absl's app.run, except that what a user can mend ends as one sentence and exit code 1.

    main() takes no arguments, or with `positional` the list of those that are not flags.
    """

    def guarded(argv):
        logging.set_verbosity(logging.WARNING)
        try:
            if argv[1:] and not positional:
                raise ConfigError(argv[1], "is not a flag", "flags are --name=value; see --help")
            join_processes()
            compilation_cache()
            main(*[argv[1:]] * positional)
        except BindError as error:
            print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
            sys.exit(1)
        except OSError as error:  # a folder that cannot be written, a full disk
            print(f"\n{error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
            sys.exit(1)

    app.run(guarded, flags_parser=_parse)


def _parse(argv):
    """absl's parser, with ml_collections' tracebacks about the config turned into a sentence."""
    try:
        rest = FLAGS(argv)
        if "config" in FLAGS:
            FLAGS.config.get("task")  # a file that failed to load speaks up here
        return rest
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        # The cause stands last, behind a traceback; a file that is not there, before it.
        lines = [line.strip(' "') for line in str(error).replace("\\n", "\n").splitlines()]
        lines = [line for line in lines if line and not line.startswith("Pass --help")]
        shown = lines if isinstance(error, flags.Error) and len(lines) < 4 else lines[-1:]
        print("\nConfigError: " + "\n  ".join(shown), file=sys.stderr)
        print(f"The command was: {' '.join(argv)}\n--help explains it.", file=sys.stderr)
        sys.exit(1)
