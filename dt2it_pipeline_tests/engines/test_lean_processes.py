"""What keeps the start of processes short."""

import gc
from typing import ClassVar

import pytest

from dt2it_pipeline.engines.jobs import Job, import_for
from dt2it_pipeline.engines.lean_processes import quick_imports, search_rarely

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
    before = gc.get_freeze_count()
    import_for(ImportingJob())
    assert searching.pop() is False
    assert gc.isenabled()
    assert gc.get_freeze_count() > before


def test_a_program_is_not_searched_at_every_few_hundred_objects():
    searches: list[str] = []
    before = gc.get_threshold()

    def count(phase: str, info: dict[str, int]) -> None:
        searches.append(phase)

    gc.set_threshold(700, 10, 10)
    gc.callbacks.append(count)
    try:
        few = [[] for _ in range(10_000)]
        assert searches
        searches.clear()
        search_rarely()
        many = [[] for _ in range(10_000)]
        assert searches == [] and len(few) == len(many)
    finally:
        gc.callbacks.remove(count)
        gc.set_threshold(*before)
