"""What becomes of each fault of a judge's endpoint: a table, from the local server that the tests use.

    python -m benchmarks.judge_faults

Not a matter of speed: it shows how many requests each fault costs, and whether the item ends judged or quarantined.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dt2it_pipeline.construct import judge
from dt2it_pipeline.storage import atomic
from dt2it_pipeline_tests.support.fault_server import KEY, FaultServer, serving
from dt2it_pipeline_tests.support.judge_faults import FAULTS, fault_texts, judging_job


def main() -> None:
    """Judge one response per fault, twice, and print what happened."""
    os.environ["DT2IT_TEST_KEY"] = KEY
    server = FaultServer({item: (fault, times) for item, (fault, times, _, _) in FAULTS.items()})
    with tempfile.TemporaryDirectory() as name, serving(server):
        folder = Path(name)
        texts = fault_texts()
        job = judging_job(folder, server.url, [[text] for text in texts.values()], modes=["pointwise"])
        metadata = judge.run(job, lambda progress: None)
        first = dict(server.seen)
        again = judge.run(job, lambda progress: None)
        status = {
            r["response_id"]: r["status"] for r in atomic.read_parquet(folder / "judged/judgements.parquet").to_pylist()
        }
        found = {r["text"]: status[r["response_id"]] for r in atomic.read_parquet(job.responses).to_pylist()}
    print("| the endpoint | times | requests | in the end | requests of a second run |")
    print("|---|---|---|---|---|")
    for item, (fault, times, _, _) in FAULTS.items():
        often = "always" if times > 9 else times or ""
        end = found[texts[item]]
        result = "judged" if end == "ok" else f"quarantined: {end}"
        print(f"| {fault or 'answers'} | {often} | {first[item]} | {result} | {server.seen[item] - first[item]} |")
    for title, figures in (("first run", metadata), ("second run", again)):
        one = figures["judges"]["remote"]
        print(
            f"{title}: {figures['rows_in']} responses = {figures['rows_out']} judged + "
            f"{figures['rows_quarantined']} quarantined; "
            f"{one['looked_up']} replies from disk, {one['asked']} asked for; cost {one['cost']:.4f}"
        )
    print("on the line:", ", ".join(f"{kind} {count}" for kind, count in metadata["judges"]["remote"]["line"].items()))


if __name__ == "__main__":
    main()
