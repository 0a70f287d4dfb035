"""What a run tells: metrics.jsonl (always), TensorBoard, and a progress line with throughput and
time left.

Process 0 writes; the others keep silent.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from bind.errors import DataError, TrainingError


def read(path: os.PathLike | str) -> list[dict]:
    """The records of a metrics.jsonl. A last line that a kill cut short is left out.

    Raises: DataError naming `file:line` for any other line that is not one.
    """
    records = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n")[:-1], 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}:{number}", "is damaged", "delete this line") from error
    return records


def say(text: str) -> None:
    """A line for the person who watches, above the bar if there is one; from process 0 only."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()


class Writer:
    """Appends one JSON object a step to `workdir/metrics.jsonl`; TensorBoard gets the numbers.

    start: the step a run resumes from. Records behind it are of a future that was never saved: they
      go,
    so that the file always tells one history.
    """

    def __init__(self, workdir: os.PathLike | str, start: int = 0):
        self.active = jax.process_index() == 0
        if not self.active:
            return
        path = Path(workdir) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [r for r in read(path) if r["step"] <= start] if path.exists() else []
        fresh = path.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(r) + "\n" for r in kept))
        os.replace(fresh, path)
        self.file = path.open("a")
        self.board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, values: dict[str, float | str]) -> None:
        """One record. Numbers keep every bit; NaN and infinity become strings."""
        if not self.active:
            return
        record = {
            k: v if isinstance(v, str) or math.isfinite(v) else str(v) for k, v in values.items()
        }
        try:
            self.file.write(json.dumps({"step": step, **record}) + "\n")
        except OSError as error:
            raise TrainingError(
                self.file.name, f"cannot be written: {error.strerror}", "free some space"
            ) from error
        for name, value in values.items():
            if not isinstance(value, str) and math.isfinite(value):
                self.board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Makes what was written outlive the process; called before every checkpoint."""
        if not self.active:
            return
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise TrainingError(
                self.file.name, f"cannot be written: {error.strerror}", "free some space"
            ) from error
        self.board.flush()

    def close(self) -> None:
        if self.active:
            self.flush()
            self.file.close()
            self.board.close()


class Progress:
    """A bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self, total: int, start: int, unit: int):
        self.total, self.step, self.unit = total, start, unit
        self.quiet = jax.process_index() != 0
        self.bar = None
        if sys.stderr.isatty() and not self.quiet:
            self.bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)
        self.mark, self.mark_step, self.paused = time.perf_counter(), start, 0.0
        self.rate = 0.0  # rows a second, of the last window

    def pause(self, seconds: float) -> None:
        """Time spent on compiling, evaluation or saving; it does not count against throughput."""
        self.paused += seconds

    def advance(self, step: int) -> None:
        if self.bar:
            self.bar.update(step - self.step)
        self.step = step

    def report(self, text: str) -> dict[str, float]:
        """Closes a window: shows `text`, throughput and time left; returns them as metrics."""
        now = time.perf_counter()
        steps, seconds = self.step - self.mark_step, max(now - self.mark - self.paused, 1e-9)
        self.rate = steps * self.unit / seconds
        left = (self.total - self.step) * seconds / max(steps, 1)
        self.mark, self.mark_step, self.paused = now, self.step, 0.0
        if self.bar:
            self.bar.set_postfix_str(f"{text}, {self.rate:.0f} rows/s")
        else:
            clock = f"{int(left) // 60}:{int(left) % 60:02d}"
            say(f"step {self.step}/{self.total}  {text}  {self.rate:.0f} rows/s  {clock} left")
        return {"rows_per_second": self.rate}

    def close(self) -> None:
        if self.bar:
            self.bar.close()
