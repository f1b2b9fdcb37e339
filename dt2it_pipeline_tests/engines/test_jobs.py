"""The command line that all jobs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from dt2it_pipeline.engines.jobs import main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["one.json", "two.json"]])
def test_what_names_no_one_job_is_told_the_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^usage: python -m MODULE job\.json"):
        main(lambda job, report: {}, arguments)


@pytest.mark.parametrize("text", [None, "{", "\udcff"])
def test_a_job_that_cannot_be_read_is_one_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "job.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(SystemExit, match=r"^error: the job .*job\.json cannot be read: "):
        main(lambda job, report: {}, [str(tmp_path / "job.json")])


def test_a_job_runs_and_its_summary_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.json").write_text('{"rows": 2}')
    main(lambda job, report: report(job) or {"done": job["rows"]}, ["--local_rank=0", str(tmp_path / "job.json")])
    assert capsys.readouterr().out == 'rows=2\n{"done": 2}\n'
