from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dt2it_pipeline.ingest import video
from dt2it_pipeline.ingest.media import MediaError, import_video
from dt2it_pipeline_tests.reward.tiny import make_frames, make_video_file, moving


def test_a_folder_of_frames_is_stored_once_by_content(tmp_path: Path) -> None:
    root, media = tmp_path / "root", tmp_path / "media"
    make_frames(root / "a", 12, 5.0)
    make_frames(root / "b", 12, 5.0)
    make_frames(root / "slow", 12, 1.0)
    first, second, slow = (import_video(name, root, media) for name in ("a", "b", "slow"))
    assert first == second
    assert first["sha256"] != slow["sha256"]
    stored = media / first["path"]
    assert json.loads((stored / "video.json").read_text()) == {"fps": 5.0}
    assert video.read_header(stored) == video.VideoHeader(12, 5.0, 32, 48)
    frames = list(video.frames(stored, range(12)))
    assert all(np.array_equal(*pair) for pair in zip(frames, moving(12, (32, 48)), strict=True))  # 10 comes after 9
    assert sorted(entry.name for entry in media.rglob("tmp*")) == []


def test_a_video_file_is_stored_by_content(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    root, media = tmp_path / "root", tmp_path / "media"
    root.mkdir()
    made = make_video_file(root / "clip.dat.avi", 20, 10.0)
    row = import_video("clip.dat.avi", root, media)
    assert row == {"kind": "video", "sha256": made["sha256"], "path": f"{made['sha256'][:2]}/{made['sha256']}.avi"}
    assert video.read_header(media / row["path"]) == video.VideoHeader(20, 10.0, 32, 48)
    every = list(video.frames(media / row["path"], range(20)))
    some = list(video.frames(media / row["path"], (3, 3, 17)))
    assert [np.array_equal(some[i], every[n]) for i, n in enumerate((3, 3, 17))] == [True] * 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent", "missing video"),
        ("../outside", "path outside the media root"),
        ("link", "path outside the media root"),
        ("damaged", "unreadable image"),
        ("text.mp4", "unknown video format"),
        ("header.mp4", "unreadable video"),
    ],
)
def test_what_cannot_be_used_is_refused_and_leaves_nothing(tmp_path: Path, name: str, reason: str) -> None:
    pytest.importorskip("cv2")
    root, media = tmp_path / "root", tmp_path / "media"
    make_frames(tmp_path / "outside", 3, 2.0)
    make_frames(root / "damaged", 3, 2.0)
    (root / "damaged" / "frame2.png").write_bytes(b"nothing")
    make_frames(root / "link", 3, 2.0)
    (root / "link" / "frame1.png").unlink()
    (root / "link" / "frame1.png").symlink_to(tmp_path / "outside" / "frame1.png")
    (root / "text.mp4").write_text("not a video at all")
    (root / "header.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 64)
    with pytest.raises(MediaError) as caught:
        import_video(name, root, media)
    assert caught.value.reason == reason
    assert not media.exists() or not list(media.rglob("*"))
