"""Builds sets from files of their sources, which the user has downloaded.

    python -m benchmarks.real_noise.rebuild llmbar_palm LLMBAR --output SETS
    python -m benchmarks.real_noise.rebuild pandalm PANDALM --output SETS
    python -m benchmarks.real_noise.rebuild tifa160 TIFA --ratings dsg_tifa160_anns.csv --output SETS
    python -m benchmarks.real_noise.rebuild genai_images GENAI --output SETS        # or genai_edits, genai_videos
    python -m benchmarks.real_noise.rebuild t2vscore T2V --output SETS
    python -m benchmarks.real_noise.rebuild judgebench_grm JUDGEBENCH --output SETS # or judgebench_o1
    python -m benchmarks.real_noise.rebuild imagenhub_edits VIESCORE --output SETS  # or imagenhub_images
    python -m benchmarks.real_noise.rebuild tcbench TCBENCH --output SETS
    python -m benchmarks.real_noise.rebuild t2iscorescore TS2 --output SETS
    python -m benchmarks.real_noise.rebuild wmt23_zhen ESA --ratings SIDE_BY_SIDE.tsv.tar.gz --output SETS
    python -m benchmarks.real_noise.rebuild wmt23_ende ESA --output SETS
    python -m benchmarks.real_noise.rebuild simplicity SIMPLICITY --output SETS

Each name in capitals is a checkout: LLMBAR of github.com/princeton-nlp/LLMBar (MIT), PANDALM of
github.com/WeOpenML/PandaLM (Apache-2.0), TIFA of github.com/Yushi-Hu/tifa (Apache-2.0), GENAI of
github.com/TIGER-AI-Lab/GenAI-Bench (MIT), T2V of github.com/linzhiqiu/t2v_metrics (Apache-2.0), whose `datasets/` has
`dsg_tifa160_anns.csv`, too, JUDGEBENCH of github.com/ScalerLab/JudgeBench (its data set's card says MIT), VIESCORE of
github.com/TIGER-AI-Lab/VIEScore (MIT), TCBENCH of github.com/weixi-feng/TC-Bench (MIT), TS2 of
github.com/michaelsaxon/T2IScoreScore (MIT), ESA of github.com/wmt-conference/ErrorSpanAnnotation (GPL-3.0), and
SIMPLICITY of github.com/feralvam/metaeval-simplification (CC BY-NC-SA 4.0). SIDE_BY_SIDE is
`generalMT2023/zhen/sxs_mqm_generalMT2023_zhen.3ratingsPerSegment` of github.com/google/wmt-mqm-human-evaluation
(Apache-2.0). The annotator whose label is the noisy one is drawn in `pandalm`, `tifa160`, `imagenhub_edits`, `tcbench`
and `simplicity`, and the pairs are in `t2vscore`, `imagenhub_*`, `tcbench`, `t2iscorescore`, `wmt23_*` and
`simplicity`: another seed gives another set.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.real_noise.rebuild import annotated, judged, pictured, rated
from benchmarks.real_noise.rebuild.building import Tables, write
from benchmarks.real_noise.sets import SetError

RATINGS = {
    "tifa160": "dsg_tifa160_anns.csv",
    "wmt23_zhen": "sxs_mqm_generalMT2023_zhen.3ratingsPerSegment.tsv.tar.gz",
}


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    builders: dict[str, Callable[[argparse.Namespace], Tables]] = {
        "llmbar_palm": lambda given: annotated.llmbar_palm(given.checkout),
        "pandalm": lambda given: annotated.pandalm(given.checkout, given.seed),
        "tifa160": lambda given: annotated.tifa160(given.checkout, given.ratings, given.seed),
        "genai_images": lambda given: judged.genai_bench(given.checkout, given.set),
        "genai_edits": lambda given: judged.genai_bench(given.checkout, given.set),
        "genai_videos": lambda given: judged.genai_bench(given.checkout, given.set),
        "t2vscore": lambda given: judged.t2vscore(given.checkout, given.seed),
        "judgebench_grm": lambda given: judged.judgebench(given.checkout, "grm-gemma-2b"),
        "judgebench_o1": lambda given: judged.judgebench(given.checkout, "o1"),
        "imagenhub_edits": lambda given: pictured.imagenhub_edits(given.checkout, given.seed),
        "imagenhub_images": lambda given: pictured.imagenhub_images(given.checkout, given.seed),
        "tcbench": lambda given: pictured.tcbench(given.checkout, given.seed),
        "t2iscorescore": lambda given: pictured.t2iscorescore(given.checkout, given.seed),
        "wmt23_zhen": lambda given: rated.wmt23_zhen(given.checkout, given.ratings, given.seed),
        "wmt23_ende": lambda given: rated.wmt23_ende(given.checkout, given.seed),
        "simplicity": lambda given: rated.simplicity(given.checkout, given.seed),
    }
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_noise.rebuild",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("set", choices=tuple(builders))
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--ratings", type=Path, help="DSG's ratings for tifa160, side-by-side ones for wmt23_zhen")
    parser.add_argument("--output", type=Path, required=True, help="folder in which the set's folder is made")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.set in RATINGS and given.ratings is None:
        parser.error(f"{given.set} needs --ratings {RATINGS[given.set]}")
    if not given.checkout.is_dir():
        parser.error(f"{given.checkout} is no folder; CHECKOUT is a checkout of the set's source")
    if given.set in RATINGS and not given.ratings.is_file():
        parser.error(f"--ratings {given.ratings} is no file; {given.set} needs {RATINGS[given.set]}")
    folder = given.output / given.set
    try:
        tables = builders[given.set](given)
    except FileNotFoundError as error:
        parser.error(f"{error.filename} is missing; is {given.checkout} a checkout of the set's source?")
    except OSError as error:
        parser.error(f"{error.filename} cannot be read: {error.strerror}")
    except SetError as error:
        parser.error(str(error))
    try:
        write(tables, folder)
    except OSError as error:
        parser.error(f"{folder} cannot be written ({error.strerror}); --output is a folder, which may not exist yet")
    except SetError as error:
        parser.error(str(error))
    print(f"{folder}: {len(tables['pairs'])} pairs")


if __name__ == "__main__":
    main()
