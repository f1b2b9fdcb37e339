"""The one way to turn a path that somebody else wrote into a file: it may not leave its root."""

from __future__ import annotations

from pathlib import Path

from dt2it_pipeline.media.errors import MediaError

OUTSIDE = "path outside the media root"  # reason of a path that leaves its root


def confined(name: str | Path, root: Path, kind: str = "image") -> Path:
    """The file or folder that `name` means below `root`, links resolved; it need not exist.

    Args:
        name: relative to `root`, or absolute.
        root: folder that the path may not leave by `..`, by an absolute path or through a link.
        kind: what is looked for, for the error's reason.

    Raises:
        MediaError: the path leaves the root, or no file can have it (a NUL in it, links that lead to themselves).
    """
    try:
        root = root.resolve()
        file = (root / name).resolve()
    except RuntimeError as error:  # so pathlib reports links that lead to themselves
        raise MediaError(f"missing {kind}", f"{name}: {error}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL, or a character that no file system can write
        raise MediaError(f"missing {kind}", f"{str(name)[:200]!r}: {error}") from error
    if not file.is_relative_to(root):
        raise MediaError(OUTSIDE, str(name))
    return file
