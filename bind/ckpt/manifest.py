"""What makes a folder a committed step: a manifest of every file's size and SHA-256.

    MANIFEST.json = {"files": {"d/3dfb...": {"sha256": hex, "size": bytes}, ...},
                     "format": 1, "sha256": hash of the two fields above}

Its text is canonical: a manifest is good only if writing its own content again gives the same
bytes, so that no flipped bit in it can pass, not even one in a space. It is the commit mark of a
step: written last, removed first.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from bind.errors import CheckpointError

NAME = "MANIFEST.json"
FORMAT = 1
ABOUT = "_CHECKPOINT_METADATA"  # orbax's file about a step; tells whose folder it is
LISTED = 10  # at most so many names in a message
THREADS = 4  # hashing releases the GIL; more threads than this only wait for the disk


def write(folder: epath.Path) -> int:
    """Hashes every file below `folder`, writes its manifest, and returns the bytes hashed.

    Raises OSError (a full disk, a lost mount): whoever asked for the save explains it.
    """
    table = _hash(folder, _names(folder))
    _publish(folder / NAME, _encode(table, FORMAT))
    return sum(entry["size"] for entry in table.values())


def damaged(folder: epath.Path) -> list[str]:
    """Names of the files of `folder` that are damaged, missing or surplus; [] when all is as saved.

    Every byte is read. If the manifest itself is missing or damaged, its name is the answer:
    nothing it says about the others can be trusted.

    Raises:
      CheckpointError: a file is there but cannot be read (which may pass, so it is not called
        damage), or the manifest is of a newer format.
    """
    try:
        table = _decode(_bytes(folder / NAME), folder / NAME)
    except FileNotFoundError:
        table = None
    if table is None:
        return [NAME]
    present = set(_names(folder))
    found = _hash(folder, sorted(present & table.keys()))
    wrong = {name for name, entry in found.items() if entry != table[name]}
    return sorted(wrong | (present ^ table.keys()))


def is_step(name: str) -> bool:
    return name.isdecimal() and name == str(int(name))


def steps(directory: epath.Path) -> list[int]:
    """Steps below `directory` that have a manifest, ascending. Nothing is hashed."""
    if not directory.exists():
        return []
    names = [path.name for path in directory.iterdir() if is_step(path.name)]
    return sorted(int(name) for name in names if (directory / name / NAME).exists())


def require_good(directory: epath.Path, step: int) -> None:
    """Raises CheckpointError unless `step` is committed and every file of it is as saved."""
    there, folder = steps(directory), directory / str(int(step))
    if step not in there:
        raise CheckpointError(folder, "is not a committed step", f"there are {there or 'none'}")
    bad = damaged(folder)
    if bad:
        remedy = f"other steps: {[other for other in there if other != step] or 'none'}"
        raise CheckpointError(folder / bad[0], f"is damaged; in all: {some(bad)}", remedy)


def aside(folder: epath.Path) -> epath.Path:
    """A free name beside `folder`: 1000.damaged, 1000.damaged.2, ..."""
    path, count = folder.parent / f"{folder.name}.damaged", 1
    while path.exists():
        count += 1
        path = folder.parent / f"{folder.name}.damaged.{count}"
    return path


def remove(folder: epath.Path) -> None:
    """Deletes a step such that a kill in between leaves what the next start knows as its own."""
    try:
        (folder / NAME).unlink(missing_ok=True)
        for path in folder.iterdir():
            if path.is_dir():
                path.rmtree()
            elif path.name != ABOUT:
                path.unlink()
        folder.rmtree()
    except OSError as fault:
        raise CheckpointError(folder, f"cannot be removed: {fault}", "remove it by hand") from fault


def some(names: list[str]) -> str:
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _names(folder):
    """Paths of all files below `folder`, relative and sorted, but for the manifest."""
    names = []
    for root, _, files in folder.walk():
        inside = root.relative_to(folder)
        names += [(inside / file).as_posix() for file in files]
    return sorted(set(names) - {NAME, NAME + ".tmp"})


def _hash(folder, names):
    """{name: {"sha256": hex, "size": bytes}}; a file that has vanished has size -1."""
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _digest(path):
    try:
        with path.open("rb") as file:
            return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": file.tell()}
    except FileNotFoundError:
        return {"sha256": "", "size": -1}
    except OSError as fault:
        raise _unreadable(path, fault) from fault


def _bytes(path):
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as fault:
        raise _unreadable(path, fault) from fault


def _unreadable(path, fault):
    remedy = "if this lasts, move the step's folder away by hand: an older step is then used"
    return CheckpointError(path, f"cannot be read: {fault}", remedy)


def _encode(files, version):
    """The bytes of a manifest: the only ones that `_decode` takes for this content."""
    body = {"files": files, "format": version}
    body["sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps(body, sort_keys=True, indent=1) + "\n").encode()


def _decode(raw, path):
    """The table of a manifest's bytes, or None if they are not as written."""
    try:
        body = json.loads(raw)
        good = raw == _encode(body["files"], body["format"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not good:
        return None
    if body["format"] != FORMAT:
        reason = f"has format {body['format']}; this version reads format {FORMAT}"
        raise CheckpointError(path, reason, "update the package")
    return body["files"]


def _publish(path, raw):
    """Writes `raw` such that `path` holds all of it or nothing, even after a power cut."""
    temporary = path.parent / (path.name + ".tmp")
    local = "://" not in os.fspath(path)  # object stores publish whole objects and have no fsync
    with temporary.open("wb") as file:
        file.write(raw)
        file.flush()
        if local:
            os.fsync(file.fileno())
    temporary.replace(path)
    if local:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
