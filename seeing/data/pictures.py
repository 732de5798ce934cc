"""Where the picture is that a record names, looked for in the data set's own folders only.

A record comes from somebody else. A name that leads out of the folders (`../../key.png`, `/etc/passwd`) is
refused, whether or not something lies there. A link inside a folder is followed: whoever owns the folder put
it there, and pictures are often linked rather than copied.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from seeing.data.failures import BadData, Wrong
from seeing.data.images import BadImage, ImageTooLarge, load_image
from seeing.data.spec import from_home


@dataclass(frozen=True)
class Pictures:
    """The folders that pictures are looked for in, first to last."""

    folders: tuple[Path, ...]

    @classmethod
    def beside(cls, path: Path | None, images: str | Path | None = None) -> Pictures:
        """Pictures of what lies at `path`: beside it and in `images/`, or where given. Raises BadData."""
        if images is None:
            folder = path if path is None or path.is_dir() else path.absolute().parent
            return cls(() if folder is None else (folder, folder / "images"))
        given = from_home(images).absolute()
        if not given.is_dir():
            raise BadData(f"no folder of pictures at {given}")
        return cls((given,))

    def read(self, value: Any, dataset: Any = None) -> Image.Image:
        """The picture that a record holds or names; `dataset` names a folder it may lie in. Raises Wrong."""
        if isinstance(value, (list, tuple)):
            if len(value) != 1:
                raise Wrong("no picture", f"the record has {len(value)} pictures, expected one")
            value = value[0]
        if isinstance(value, Mapping):  # how the library `datasets` keeps a picture
            value = value.get("bytes") or value.get("path")
        if value is None or value == "":
            raise Wrong("no picture", "the record names no picture")
        if not isinstance(value, (str, bytes, Image.Image)):
            raise Wrong(
                "no picture", f"the record's picture is {type(value).__name__}, expected a file's name"
            )
        try:
            return load_image(self.find(value, dataset) if isinstance(value, str) else value)
        except ImageTooLarge as error:
            raise Wrong("picture too large", str(error)) from error
        except BadImage as error:
            raise Wrong("broken picture", str(error)) from error

    def find(self, name: str, dataset: Any = None) -> Path:
        """The file of that name. Raises Wrong when there is none, or the name leads out of the folders."""
        if "://" in name:
            raise Wrong(
                "missing picture", f"{name!r:.200} is an address; download it and give the file's name"
            )
        inside = self._inside(name)
        below = [inside]
        if isinstance(dataset, str) and dataset and dataset == os.path.basename(dataset) and dataset != "..":
            below.append(PurePosixPath(dataset) / inside)
        for folder in self.folders:
            for one in below:
                with suppress(OSError, ValueError):  # a name that no file system takes
                    if (folder / one).is_file():
                        return folder / one
        places = " or ".join(map(str, self.folders)) or "no folder: give one as images"
        raise Wrong("missing picture", f"no picture {name!r:.200} in {places}")

    def _inside(self, name: str) -> PurePosixPath:
        """`name` as a path below a folder. Raises Wrong."""
        path = PurePosixPath(name)
        if path.is_absolute():
            for folder in self.folders:
                if path.is_relative_to(folder):
                    path = path.relative_to(folder)
                    break
        if path.is_absolute() or ".." in path.parts:
            raise Wrong(
                "picture outside",
                f"the picture's name {name!r:.200} leads out of the folder of pictures; give the folder it "
                "lies in as images",
            )
        return path
