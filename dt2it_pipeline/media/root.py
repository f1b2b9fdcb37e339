"""The declared root of a source's media: a folder, a .zip or a .tar that no path may leave."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import tarfile
import threading
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

from dt2it_pipeline.media import web
from dt2it_pipeline.media.errors import MediaError
from dt2it_pipeline.media.images import check_bytes, open_file
from dt2it_pipeline.media.paths import confined
from dt2it_pipeline.media.tar_files import BoundedMember, BoundedTar


class MediaRoot:
    """Where a source's media lie, and the bytes of each by name. Safe to read from several threads.

    Args:
        root: folder, .zip or uncompressed .tar; None where rows hold their images, so that any path is refused.
        prefix: taken off the front of names, for sources that write the root of their authors' machine.
        web: whether names may be addresses of the web (http, https), which are then fetched.

    Raises:
        OSError, UnicodeDecodeError, zipfile.BadZipFile, tarfile.TarError: the archive cannot be read, or is not bounded
            (`BoundedTar`).
    """

    def __init__(self, root: Path | None, prefix: str = "", web: bool = False) -> None:
        self.root, self.prefix, self.web = root, prefix, web
        self._zip: zipfile.ZipFile | None = None
        self._tar: dict[str, tuple[int, int]] | None = None  # name -> offset and size
        self._with_holes: set[tuple[int, int]] = set()  # of these: files whose zeros the archive leaves out
        self._file = -1
        self._ambiguous: set[str] = set()  # names that several files of the archive have
        self._by_last: dict[str, list[str]] | None = None  # last part of a name -> names of the archive
        self._lock = threading.Lock()
        self._folders: dict[str, Path] = {}  # folder of a name -> where it truly lies
        if root is not None and root.is_file():
            if root.suffix == ".zip":
                self._zip = zipfile.ZipFile(root)
                counts = Counter(entry.filename for entry in self._zip.infolist())
                self._ambiguous = {name for name, times in counts.items() if times > 1}
            elif root.suffix == ".tar":
                with BoundedTar(root, "r", tarinfo=BoundedMember) as archive:
                    self._tar = {}
                    for member in archive.passing():
                        name = member.name.removeprefix("./")
                        place = (member.offset_data, member.size) if member.isreg() else None
                        if place is not None and member.issparse():
                            self._with_holes.add(place)
                        if member.islnk():  # the same file once more, under another name
                            place = self._tar.get(member.linkname.removeprefix("./"))
                        if place is not None and self._tar.setdefault(name, place) != place:
                            self._ambiguous.add(name)
                self._file = os.open(root, os.O_RDONLY)
            else:
                raise tarfile.TarError(f"{root.name} is neither .zip nor .tar; unpack it and name the folder")

    def close(self) -> None:
        """Close the archive, if it is one."""
        if self._zip is not None:
            self._zip.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def stamp(self, name: str) -> str | None:
        """What stands for a file as long as it does not change: its place, size and time; None where there is none.

        Of an address of the web, the address: what was fetched once is not fetched again.
        """
        if self._is_address(name):
            return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest() if self.web else None
        try:
            if self._zip is not None or self._tar is not None:
                assert self.root is not None
                found = self.root.stat()
                return _digest(self.root, name, found)
            file = self.locate(name)
            found = file.stat()
        except (OSError, ValueError):  # reported when the file is read
            return None
        return _digest(file, "", found)

    def locate(self, name: str) -> Path:
        """The file or folder that a name means. Raises MediaError where it leaves the root or there is none."""
        if self.root is None:
            raise MediaError("missing image", f"{name}: the manifest names no media_root")
        if self._zip is not None or self._tar is not None:
            raise MediaError("missing video", f"{name}: archives hold images only; unpack {self.root.name}")
        try:
            return self._located(self._name(name))
        except OSError as error:  # a name that is too long, for instance
            raise MediaError("missing image", f"{name[:200]}: {error.strerror}") from error

    def read(self, name: str) -> bytes:
        """The content of an image. Raises MediaError where it is missing, too large or outside the root."""
        if self._is_address(name):
            if not self.web:
                raise MediaError(
                    "address not allowed", f"{name[:300]}: set `media_urls: true` in the manifest to fetch it"
                )
            return web.fetch(name)
        if self._name(name).removeprefix("./") in self._ambiguous:
            raise MediaError("ambiguous image", f"{name}: the archive holds several files of this name")
        if self._zip is not None:
            return self._read_zip(self._member(name))
        if self._tar is not None:
            place = offset, size = self._tar[self._member(name)]
            if place in self._with_holes:
                raise MediaError("file with holes", f"{name}: pack the archive anew, without --sparse")
            check_bytes(size, name)
            return os.pread(self._file, size, offset)
        file = self.locate(name)
        assert self.root is not None
        try:
            with open_file(file, name) as stream:
                return stream.read()
        except (MediaError, OSError) as error:
            if not self.root.exists():
                raise MediaError("missing image", f"{name}: there is no media_root {self.root}") from error
            if isinstance(error, MediaError):
                raise
            raise MediaError("missing image", f"{name}: {error.strerror}") from error

    def _is_address(self, name: str) -> bool:
        """Whether a name is an address of the web, and not a file below a root that somebody wrote as one."""
        return web.is_address(name) and not (self.prefix and name.startswith(self.prefix))

    def _located(self, name: str) -> Path:
        """As `confined`, folders being resolved once each."""
        assert self.root is not None
        folder, slash, last = name.rpartition("/")
        if last in ("", ".", "..") or (slash and not folder):
            return confined(name, self.root)
        parent = self._folders.get(folder)
        if parent is None:
            try:
                parent = self._folders[folder] = confined(folder, self.root)
            except MediaError as error:
                raise MediaError(error.reason, name) from error
        file = parent / last
        return confined(name, self.root) if file.is_symlink() else file

    def holds(self, name: str) -> bool:
        """Whether an archive has an image of this name; see `read`."""
        try:
            return bool(self._member(name))
        except MediaError:
            return False

    def _member(self, name: str) -> str:
        """The member of the archive that a name means: of this name, or the one in a folder where there is no other.

        Rows name images from their own file, which may lie in a folder of the archive, too.
        """
        members = self._zip.NameToInfo if self._zip is not None else self._tar or {}
        wanted = self._name(name).removeprefix("./")
        if wanted in members:
            return wanted
        with self._lock:
            if self._by_last is None:
                self._by_last = {}
                for member in members:
                    self._by_last.setdefault(member.rpartition("/")[2], []).append(member)
        found = [] if not wanted else self._by_last.get(wanted.rpartition("/")[2], [])
        found = [member for member in found if member.endswith(f"/{wanted}")]
        if len(found) > 1 or (found and found[0] in self._ambiguous):
            raise MediaError("ambiguous image", f"{name}: the archive holds {len(found)} files that end so")
        if not found:
            raise MediaError("missing image", f"{name}: not in the archive")
        return found[0]

    def _read_zip(self, name: str) -> bytes:
        assert self._zip is not None
        try:
            entry = self._zip.getinfo(name)
            check_bytes(entry.file_size, name)
            with self._lock:
                return self._zip.read(entry)
        except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError) as error:
            raise MediaError("unreadable image", f"{name}: {error}") from error

    def _name(self, name: str) -> str:
        try:
            os.fsencode(name)  # it may have come from a file system as surrogates
            impossible = "\0" in name
        except UnicodeEncodeError:
            impossible = True
        if impossible:
            raise MediaError("missing image", f"{name[:200]!r} can be no file's name")
        address = name.startswith("file:")
        name = name.removeprefix(self.prefix)
        if address:
            name = re.sub(r"^file:(?://[^/]*)?", "", name)
            name = re.sub(r"^/(?=[A-Za-z]:)", "", unquote(name)).removeprefix(self.prefix)
        if "\\" in name and not self._has(name):  # written on Windows
            name = name.replace("\\", "/")
        return name

    def _has(self, name: str) -> bool:
        """Whether there is a file of exactly this name."""
        if self._zip is not None:
            return name in self._zip.NameToInfo
        if self._tar is not None or self.root is None:
            return self._tar is not None and name in self._tar
        try:
            return (self.root / name).exists()
        except OSError:  # a name that is too long
            return False


def _digest(file: Path, name: str, found: os.stat_result) -> str:
    text = f"{file}\0{name}\0{found.st_size}\0{found.st_mtime_ns}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()  # names need not be UTF-8
