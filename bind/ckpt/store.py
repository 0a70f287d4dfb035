"""Checkpoints that are either exactly what was saved, or an error that names the file.

    with Store(workdir / "checkpoints", keep=3) as store:
        found = store.restore(like)      # newest good step on the shardings of `like`, or None
        store.save(step, state, {"data": position, "config": ...})    # returns after the host copy

Orbax writes and reads the arrays. It does not notice most flipped bits in its files, so a step
counts only once `MANIFEST.json` (manifest.py) is in its folder, and is read only while every file
still matches it.

    <directory>/1000/                       a committed step: orbax's files and the manifest
    <directory>/1000.damaged/               found damaged by a restore; never deleted here
    <directory>/1100.orbax-checkpoint-tmp/  being written, or left by a killed job: the next start
                                            removes it, and steps that never got their manifest

One job at a time writes to a directory. With several processes (`jax.distributed`) all of them
construct the store and call save, restore, wait and close together, in their main threads and in
the same order, on a directory that all of them see. Process 0 alone hashes, renames and deletes.
"""

import errno
import json
import logging
import os
import re
import shutil
import threading

import jax
import orbax.checkpoint as ocp
from etils import epath

from bind.ckpt import leaves, manifest, processes
from bind.ckpt.manifest import some
from bind.errors import CheckpointError

log = logging.getLogger(__name__)
OURS = "bind-checkpoint"  # key in orbax's step metadata; only folders with it are ever removed


class Store:
    """The checkpoints of one training run.

    Args:
      directory: where the steps go; a local path or anything `etils.epath` takes. Created.
      keep: how many of the newest committed steps stay; of 1 alone there is no falling back.
      keep_every: steps that are multiples of this stay as well.

    Raises (all methods): CheckpointError.
    """

    def __init__(self, directory, *, keep: int = 3, keep_every: int | None = None):
        self.directory = _resolve(directory)
        if keep < 1 or (keep_every is not None and keep_every < 1):
            raise CheckpointError(
                self.directory, f"cannot keep {keep} steps and every {keep_every}", "use 1 or more"
            )
        self._keep, self._every = keep, keep_every
        self._thread, self._fault, self._closed = None, None, False
        if jax.process_index() == 0:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._sweep()
            except OSError as fault:
                raise CheckpointError(self.directory, f"cannot be used: {fault}") from fault
        self._writer = ocp.AsyncCheckpointer(
            ocp.PyTreeCheckpointHandler(),
            # a failing mkdir is an error at once in the foreground, a timeout in the background
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.close()
            return
        self._join()  # no collectives here: the error may be this process's alone
        if self._fault is not None:
            log.error("%s: the last save failed as well", self.directory, exc_info=self._fault)

    def save(self, step: int, state, meta: dict) -> None:
        """Saves a pytree of arrays; returns once nothing of it is needed on the devices any more.

        Waits for the save before, if that is still being written. An error of the writing itself
        surfaces at the next save, wait or close.

        Args:
          step: not negative, not saved yet.
          state: jax.Arrays (with several processes: global ones), numpy arrays, and numbers, which
            come back as 0-d arrays. PRNG keys as `jax.random.key_data`.
          meta: small and JSON-able; committed and checksummed with the step. Tuples come back as
            lists.
        """
        self.wait()
        folder = self._folder(step)
        if step < 0:
            raise CheckpointError(folder, "a step is not negative", "count from 0")
        if step in self.steps():
            raise CheckpointError(folder, "is saved already", "continue in a new directory")
        state = leaves.savable(folder, state)
        about = {OURS: manifest.FORMAT, "meta": leaves.plain(folder, meta)}
        room = (sum(leaf.nbytes for leaf in jax.tree.leaves(state)), _free_bytes(self.directory))
        try:
            # what is in the way is not ours: the sweep would have had it
            if jax.process_index() == 0 and folder.exists():
                folder.rename(manifest.aside(folder))
            self._writer.save(folder, args=ocp.args.PyTreeSave(state), custom_metadata=about)
        except Exception as fault:
            error = self._failed(folder, room, fault)
            self._tidy()
            raise error from fault
        # not a daemon: a main thread that dies of something else still gets its last step committed
        self._thread = threading.Thread(target=self._commit, args=(folder, room), name="commit")
        self._thread.start()

    def steps(self) -> list[int]:
        """Committed steps, ascending. Nothing is hashed."""
        return manifest.steps(self.directory)

    def verify(self, step: int) -> list[str]:
        """Names of the damaged, missing and surplus files of a step; [] if it is as saved."""
        return manifest.damaged(self._folder(step))

    def restore(self, like, step: int | None = None):
        """Restores a step onto the shardings of `like`, from whatever mesh it was saved.

        Args:
          like: the tree of jax.ShapeDtypeStruct (or arrays), leaf by leaf of the shape and dtype
            saved. A leaf without a sharding becomes numpy.
          step: that step or an error. None: the newest good one; damaged ones met on the way are
            logged, and renamed to `<step>.damaged`.

        Returns:
          (state, meta, step), or None if nothing was ever saved here.

        Raises:
          CheckpointError: the step asked for, or every step, is damaged; or it is another model's.
        """
        self.wait()
        chosen = self._agree(step)
        if chosen is None:
            return None
        return (*leaves.load(self._folder(chosen), like, partial=False), chosen)

    def wait(self) -> None:
        """Returns when the last save is committed. Raises, on every process, what broke it."""
        self._join()
        fault, self._fault = self._fault, None
        bad = [text for text in processes.share(processes.pack(fault)) if text]
        if bad:
            self._tidy()  # only now: all processes have stopped writing
            # a process that only waited in vain for another does not know the reason
            raise processes.unpack(min(bad, key=lambda text: "TimeoutError" in text)) from fault

    def close(self) -> None:
        """Waits, and ends orbax's threads: the end of this store. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            try:
                self.wait()
            finally:
                self._writer.close()

    def _folder(self, step):
        return self.directory / str(int(step))

    def _join(self):
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _commit(self, folder, room):
        """In the background: orbax's commit; on process 0 the manifest; only then retention."""
        try:
            self._writer.wait_until_finished()
            if jax.process_index() == 0:
                size = manifest.write(folder)
                log.info("%s: committed, %d bytes", folder, size)
                self._retire()
        except Exception as fault:
            self._fault = self._failed(folder, room, fault)
            self._fault.__cause__ = fault
            log.error("%s", self._fault)  # at once; it is raised only when somebody comes by

    def _retire(self):
        steps = self.steps()
        kept = set(steps[-self._keep :])
        for step in steps:
            if step not in kept and not (self._every and step % self._every == 0):
                manifest.remove(self._folder(step))

    def _failed(self, folder, room, fault):
        """The CheckpointError of a save that broke; `room` is (bytes wanted, bytes free before)."""
        if isinstance(fault, CheckpointError):
            return fault
        try:
            steps = self.steps()
        except OSError:  # the whole directory is out of reach; `fault` says why
            steps = []
        left = "no earlier step was saved"
        if steps:
            left = f"step {steps[-1]} is intact, and a restart resumes from it"
        words = _no_room(fault)
        if not words:
            reason = f"could not be written: {type(fault).__name__}: {fault}"
            return CheckpointError(folder, reason[:2000], left)
        free = "" if room[1] is None else f", {room[1]:,} bytes were free before"
        reason = f"the disk is full ({words}): the step has {room[0]:,} bytes of arrays{free}"
        remedy = f"free some space or lower `keep`; {left}"
        return CheckpointError(folder, reason, remedy)

    def _tidy(self):
        """Removes what a failed save left, if it can; what it cannot, the next start removes."""
        if jax.process_index() == 0:
            try:
                self._sweep()
            except (OSError, CheckpointError) as fault:
                log.warning("%s: a half-written step is left: %s", self.directory, fault)

    def _sweep(self):
        """Removes temporaries, and steps of ours that never got their manifest."""
        for path in sorted(self.directory.iterdir()):
            if re.fullmatch(r"\d+\.orbax-checkpoint-tmp.*", path.name):
                log.warning("%s: removed, the save did not finish", path)
                path.rmtree(missing_ok=True)
            elif manifest.is_step(path.name) and not (path / manifest.NAME).exists():
                if OURS.encode() in _peek(path / manifest.ABOUT):
                    log.warning("%s: removed, it has no %s", path, manifest.NAME)
                    manifest.remove(path)
                else:
                    log.warning("%s: ignored, it was not written by this package", path)

    def _agree(self, step):
        """The step to restore, or None; process 0 decides. Raises the same error everywhere."""
        answer = ""
        if jax.process_index() == 0:
            try:
                answer = json.dumps(self._choose(step))
            except CheckpointError as fault:
                answer = processes.pack(fault)
        answer = processes.share(answer)[0]
        if answer.startswith("["):
            raise processes.unpack(answer)
        return json.loads(answer)

    def _choose(self, step):
        """`step` if it is good; for None the newest good step, or None if there never was one."""
        if step is not None:
            manifest.require_good(self.directory, step)
            return int(step)
        for newest in reversed(self.steps()):
            folder = self._folder(newest)
            bad = manifest.damaged(folder)
            if not bad:
                return newest
            aside = manifest.aside(folder)
            try:
                folder.rename(aside)
            except OSError as fault:
                raise CheckpointError(folder, f"is damaged, cannot be moved: {fault}") from fault
            log.warning("%s: damaged: %s; moved to %s", folder, some(bad), aside.name)
        wrecks = sorted(path for path in self.directory.iterdir() if ".damaged" in path.name)
        if wrecks:  # and not None: a job that is restarted must not begin anew because of this
            files = [f"{path.name}/{name}" for path in wrecks for name in manifest.damaged(path)]
            remedy = "bring back good files from a copy and rename, or move the folders elsewhere"
            raise CheckpointError(self.directory, f"no good step; damaged: {some(files)}", remedy)
        return None


def read(directory, step: int | None = None, like=None):
    """Reads a verified step without a job: for inference and conversion. Changes nothing on disk.

    Unlike `Store.restore` it never falls back to an older step, and a process may call it alone.

    Args:
      directory: that of a `Store`.
      step: default the newest committed one.
      like: tree of jax.ShapeDtypeStruct; may be a part of what was saved (the parameters without
        the optimizer), and only that part is read. None: everything, as numpy, in nested dicts
        and lists.

    Returns:
      (tree, meta).

    Raises:
      CheckpointError: no such step, it is damaged, or a leaf of `like` is not in it.
    """
    directory = _resolve(directory)
    steps = manifest.steps(directory)
    if step is None and not steps:
        raise CheckpointError(directory, "holds no committed step", "is it a store's directory?")
    step = steps[-1] if step is None else int(step)
    manifest.require_good(directory, step)
    return leaves.load(directory / str(step), like, partial=True)


def _resolve(directory):
    return epath.Path(directory).expanduser().resolve()


def _peek(path):
    try:
        return path.read_bytes()
    except OSError:  # missing or unreadable: then it is not known to be ours, and is left alone
        return b""


def _free_bytes(directory):
    """Bytes free on a local disk; None where nobody can tell."""
    try:
        return shutil.disk_usage(os.fspath(directory)).free
    except OSError:  # an object store, or a directory that is gone
        return None


def _no_room(fault):
    """The system's words for "no room" if an error or its cause says so (tensorstore: in words)."""
    while fault is not None:
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            if getattr(fault, "errno", None) == code or os.strerror(code) in str(fault):
                return os.strerror(code)
        fault = fault.__cause__ or fault.__context__
    return ""
