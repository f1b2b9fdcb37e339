"""What keeps the start of processes short."""

import gc
from typing import ClassVar

import pytest

from dt2it_pipeline.engines.jobs import Job, import_for
from dt2it_pipeline.engines.lean_processes import quick_imports

searching: list[bool] = []


def note_search() -> None:
    searching.append(gc.isenabled())


class ImportingJob(Job):
    """A job that names what it imports."""

    entry_point: ClassVar[str] = "none:none"

    @property
    def imports(self) -> str:
        return f"{__name__}:note_search"


def test_nothing_is_searched_for_garbage_while_modules_are_imported_and_all_is_as_before_then():
    for before in (True, False):
        (gc.enable if before else gc.disable)()
        try:
            with pytest.raises(ImportError), quick_imports():
                assert not gc.isenabled()
                raise ImportError
            assert gc.isenabled() is before
        finally:
            gc.enable()


def test_what_a_job_names_is_imported_and_left_out_of_later_searches():
    gc.unfreeze()
    try:
        import_for(ImportingJob())
        assert searching.pop() is False
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
