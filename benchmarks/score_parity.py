"""How far the scores of one checkpoint lie apart, by way of asking and kind of input (docs/results/parity.md).

    python -m benchmarks.score_parity [--checkpoint FOLDER] [--family qwen2_5_vl] [--dtype bfloat16] [--photos FOLDER]

Differences are the largest of a kind, in units of the standard deviation of our scores in float32. The server is
`dt2it serve`, on a machine without a GPU for minutes. Without --checkpoint, a random tiny model of the family is asked.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from dt2it_pipeline_tests.support import parity
from dt2it_pipeline_tests.support.served import served


def main() -> None:
    """Ask every way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="of any model that this machine holds; no random one then")
    parser.add_argument("--family", default="qwen3_vl", choices=["qwen3_vl", "qwen2_5_vl"], help="of the random model")
    parser.add_argument("--dtype", default="float32", help="in which the server computes; others: bfloat16, float16")
    parser.add_argument("--photos", type=Path, help="folder of photographs (*.jpg) to ask about, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(measure(Path(name), given.checkpoint, given.family, given.dtype, given.photos))


def measure(work: Path, checkpoint: Path | None, family: str, dtype: str, photos: Path | None) -> str:
    """The table; `work` is an empty folder."""
    import torch

    from dt2it_pipeline.reward.reward_model import RewardModel

    checkpoint = checkpoint or parity.make_checkpoint(work, family)
    length = int(json.loads((checkpoint / "config.json").read_text())["text_config"]["max_position_embeddings"])
    questions = parity.make_questions(work / "media", photos, words=length // 5)
    ours = parity.by_pipeline(checkpoint, questions, max_length=length)
    columns = {}
    if dtype == "float32":
        columns["notebook"] = parity.by_notebook(checkpoint, questions)
        columns["`dt2it score`"] = parity.by_command(str(checkpoint), questions, work / "folder")
        columns["the same, `--engine vllm`"] = parity.by_command(
            str(checkpoint), questions, work / "engine", "--engine", "vllm", "--max-length", str(length)
        )
    else:
        half = RewardModel.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
        columns[f"ours in {dtype}"] = parity.by_pipeline(half, questions, max_length=length)
    with served(checkpoint, work / "server.log", "--dtype", dtype, "--max-model-len", str(length)) as url:
        columns["server, our client"] = parity.by_client(url, questions)
        columns["server, plain requests"] = parity.by_plain_requests(url, questions)
    differences = {way: parity.differences(ours, scores, questions.kind_of) for way, scores in columns.items()}
    for way, scores in columns.items():
        differences[way]["root mean square of all"] = parity.typical_difference(ours, scores)
    return parity.table(differences, [*dict.fromkeys(questions.kinds.values()), "root mean square of all"])


if __name__ == "__main__":
    main()
