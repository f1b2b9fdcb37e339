"""The errors of media: one medium that cannot be used, and an installation that cannot read videos."""

from __future__ import annotations

from dt2it_pipeline.errors import RowError, UserError


class MediaError(RowError):
    """An image or video cannot be used.

    Reasons, the same at every stage: `missing image`, `unreadable image`, `image too large`, the same of a video,
    `path outside the media root`, and a few that only one reader meets.
    """


class VideoDecoderError(UserError, RuntimeError):
    """Video files cannot be read in this installation, whatever they hold."""
