"""The files of a new project, as `dt2it init` writes them: a recipe, manifests, Dagster's settings.

What belongs here: their texts, and writing them without overwriting anything. What does not: the look at the user's
data (ingest/proposal.py).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dt2it_pipeline.config.recipe import parse_recipe
from dt2it_pipeline.config.reference import recipe_schema
from dt2it_pipeline.errors import UserError
from dt2it_pipeline.ingest.manifest import Manifest
from dt2it_pipeline.ingest.proposal import Proposal, manifest_text, propose

MODEL = "Qwen/Qwen3-VL-2B-Instruct"
_RECIPE_SCHEMA, _MANIFEST_SCHEMA = "configs/recipe.schema.json", "configs/manifest.schema.json"


class ProjectExistsError(UserError, ValueError):
    """The folder holds files that a new project would overwrite."""


@dataclass(frozen=True)
class NewProject:
    """What was written.

    Attributes:
        folder: the project.
        recipe: its recipe, from there.
        files: all files, from there.
        proposal: what the user's data looks like; None where none was given.
        notes: what is left to the user, one sentence each.
    """

    folder: Path
    recipe: str
    files: tuple[str, ...]
    proposal: Proposal | None = None
    notes: tuple[str, ...] = field(default=())


def write_project(
    folder: Path,
    data: Path | None = None,
    columns: Mapping[str, str] | None = None,
    verdict: Mapping[str, str] | None = None,
    *,
    postgres: bool = False,
) -> NewProject:
    """Write a project that loads as it is.

    Args:
        folder: where; it is made if there is none.
        data: the user's file of prompts, pairs or preferences, which stays where it is. None: the recipe runs the demo.
        columns: our field -> the file's column, where looking does not find it.
        verdict: value of the verdict column -> first, second or tie, where the value does not show it.
        postgres: whether Dagster keeps runs and events in PostgreSQL, which several people and machines share.

    Raises:
        ProjectExistsError: a file of the project is there already; nothing is written.
        SourceError: the data cannot be read, or none of its first rows can be used; nothing is written.
    """
    folder = folder.absolute()
    name = _name(folder.name)
    texts: dict[str, str] = {
        _RECIPE_SCHEMA: _json(recipe_schema()),
        _MANIFEST_SCHEMA: _json(Manifest.model_json_schema()),
        "dagster.yaml": f"{_POSTGRES}\n{_DAGSTER}" if postgres else DAGSTER_YAML,
        "workspace.yaml": _WORKSPACE,
        ".env": _ENV,
        ".gitignore": _GITIGNORE,
    }
    recipe_file, proposal = f"configs/recipes/{name}.yaml", None
    notes: list[str] = []
    if data is None:
        texts[recipe_file] = _DEMO_RECIPE.format(name=name)
    else:
        proposal = propose(data, columns, verdict)
        source = _name(data.name.split(".")[0])
        root = None if proposal.media_root is None else _from(folder, proposal.media_root)
        manifest = manifest_text(proposal, source, _from(folder, data), root)
        texts[f"configs/datasets/{source}.yaml"] = _MANIFEST_HEAD + manifest
        notes += proposal.questions
        datasets = [source]
        if proposal.kind not in ("prompts", "t2i"):
            prompts = "prompts" if source != "prompts" else "construction_prompts"
            texts[f"configs/datasets/{prompts}.yaml"] = _MANIFEST_HEAD + _PROMPTS.format(name=prompts)
            datasets.insert(0, prompts)
            notes.append(
                "Round 0 trains on pairs that are made of questions with reference answers (or of text-to-image "
                f"preferences): put such questions into sources/prompts.jsonl; see configs/datasets/{prompts}.yaml."
            )
        texts[recipe_file] = _OWN_RECIPE.format(name=name, datasets=", ".join(datasets), model=MODEL)
    if postgres:
        notes.append(
            "Dagster finds PostgreSQL by DT2IT_POSTGRES_HOST, _PORT, _DATABASE, _USER and _PASSWORD: export all five "
            "wherever a run, the web UI or the daemon starts; see docs/how-to/postgres.md."
        )
    parse_recipe(texts[recipe_file], recipe_file)
    _write(folder, texts)
    return NewProject(folder, recipe_file, tuple(sorted(texts)), proposal, tuple(notes))


def _write(folder: Path, texts: dict[str, str]) -> None:
    present = sorted(path for path in texts if os.path.lexists(folder / path))
    if present:
        raise ProjectExistsError(
            f"{folder} holds {', '.join(present)} already, and nothing is overwritten: choose another folder, or move "
            "these files away"
        )
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with (folder / path).open("x", encoding="utf-8") as file:
            file.write(text)
    (folder / "data").mkdir(exist_ok=True)


def _name(text: str) -> str:
    """A name that recipes and manifests may have."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("._-") or "project"


def _from(folder: Path, path: Path) -> str:
    """A path as a manifest of the project has it: relative where it lies in the project."""
    full = path.resolve()
    return full.relative_to(folder.resolve()).as_posix() if full.is_relative_to(folder.resolve()) else str(full)


def _json(schema: dict[str, object]) -> str:
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


_MANIFEST_HEAD = "# yaml-language-server: $schema=../manifest.schema.json\n"

_PROMPTS = """\
# Questions with a reference answer, from which round 0's training set is made. TO BE SUPPLIED: one JSON object a line,
#   {{"image": "cats.jpg", "question": "How many cats are there?", "reference": "Three."}}
# in sources/prompts.jsonl, with the images in sources/images. Or write here where yours are and how their columns are
# called. A project with text-to-image preferences (kind t2i) needs none.
name: {name}
kind: prompts
path: sources/prompts.jsonl
media_root: sources/images
columns: {{image: image, question: question, reference: reference}}
language: en
licence: to be stated by whoever supplies the data
"""

_DEMO_RECIPE = """\
# yaml-language-server: $schema=../recipe.schema.json
# The demo: an embedded world of small images with 30% wrong labels, on this machine, in some minutes.
#   dt2it check        before a run        dt2it settings training        what can be set there
# Your own data: describe it by a manifest in configs/datasets (the package's are examples), name it under `datasets`,
# remove the section `demo`, and name your models in place of the demo's.
name: {name}
seed: 0
rounds: 2

datasets: [demo_prompts, demo_preferences, demo_t2i, demo_benchmark, demo_benchmark_t2i, demo_truth]

demo:
  prompts: 700
  preferences: 2000
  t2i: 400
  benchmark_per_group: 250
  noise: 0.3                # share of wrong labels among the preferences

sampling:
  samples: 3                # answers per prompt to its own image
  mismatched_samples: 3     # and to another prompt's image

# The demo's images look alike without being the same, so only equal files count as benchmark content.
decontamination: {{perceptual_distance: null, response_characters: null}}

t2i:
  phrasings: 1

training:
  processes: 2
  deepspeed_config: zero2_cpu

scoring:
  processes: 2
  shard_responses: 1000

curation:
  policy: joint             # one model of labels, voters and judges; `paper` is the published policy
  trusted_pairs: 100        # held out of D0, whose labels are right: they say how far voters and judge are believed
  call_cost: 0.5            # of a judge call, in right labels
  ensemble: {{seeds: 2}}

annotation:
  batch_pairs: 256
  judges:
    - {{name: base-plain, kind: answer}}
"""

_OWN_RECIPE = """\
# yaml-language-server: $schema=../recipe.schema.json
# A reward model from your own data, on one GPU with 24 GB. `dt2it check` says what is missing before anything runs.
#   hf download {model}        # once; or name a folder below
#   dt2it settings training                     # what can be set there, with units, ranges and defaults
name: {name}
seed: 0
rounds: 2                       # round 0 trains on D0; every later round on D0 and the curated pairs

datasets: [{datasets}]

# Candidate answers to your prompts, from which D0 is made. The model that is trained writes them, so that style does
# not show which side is the better one.
sampling:
  model: {model}
  max_new_tokens: 512
  max_model_len: 8192

# By reference answer, which needs no key. To ask a strong model, put an endpoint in its place:
# judging:
#   judges:
#     - {{kind: endpoint, name: strong, base_url: https://host.example/v1, model: NAME, api_key_env: JUDGE_KEY}}

training:
  base_model: {model}
  processes: 1                  # one per GPU
  deepspeed_config: zero2_one_gpu   # small buffers, since nothing is exchanged; zero2 with several processes
  precision: bfloat16
  lora: {{rank: 16, alpha: 32}}   # remove the line to train all weights; then 1.0e-5 is a usual learning rate
  learning_rate: 1.0e-4
  epochs: 1
  global_batch_size: 64
  micro_batch_size: 64
  micro_batch_tokens: 4096      # tokens per forward pass; raise it while memory suffices
  gradient_checkpointing: true
  cache_vision: false           # its output takes about 1 MB an image: set to true for some thousand images

scoring:
  processes: 1

# One model of labels, voters and judges. Without pairs of known truth it drops pairs and flips no label: have a person
# check fifty (`dt2it review sample`), or set trusted_pairs where your noisy pairs are like those of D0.
curation:
  policy: joint
  ensemble: {{seeds: 1}}

annotation:
  judges:
    - {{name: likelihood, kind: likelihood, model: {model}}}
"""

_WORKSPACE = """\
load_from:
  - python_module: dt2it_pipeline.definitions
"""

_ENV = """\
# Dagster reads this in the folder where it is started. What is exported already stays as it is.
DT2IT_HOME=${DT2IT_HOME:-data}
"""

_GITIGNORE = """\
/data/
/sources/
.telemetry/
.nux/
.logs_queue/
"""

_SQLITE = """\
# Dagster reads this where DAGSTER_HOME says: `export DAGSTER_HOME=$PWD` here. Runs, events and logs lie in DT2IT_HOME.
# SQLite is for one person, since it locks under parallel writers; `dt2it init DIR --postgres` writes this for a team.
# A damaged or locked file is named with what mends it.
storage:
  custom:
    module: dt2it_pipeline.orchestrate.dagster_internals
    class: SqliteStorage
    config:
      base_dir:
        env: DT2IT_HOME
"""

_POSTGRES = """\
# Dagster reads this where DAGSTER_HOME says: `export DAGSTER_HOME=$PWD` here. Runs and events lie in PostgreSQL, the
# logs of steps in DT2IT_HOME. Needs dagster-postgres (the extra `postgres`) and all five variables.
storage:
  postgres:
    postgres_db:
      scheme: postgresql+psycopg2   # `postgresql` alone is psycopg 3 to SQLAlchemy 2.1, which is not installed
      hostname: {env: DT2IT_POSTGRES_HOST}
      port: {env: DT2IT_POSTGRES_PORT}
      db_name: {env: DT2IT_POSTGRES_DATABASE}
      username: {env: DT2IT_POSTGRES_USER}
      password: {env: DT2IT_POSTGRES_PASSWORD}
"""

_DAGSTER = """\
local_artifact_storage:
  module: dt2it_pipeline.orchestrate.dagster_internals
  class: LocalArtifactStorage
  config:
    base_dir:
      env: DT2IT_HOME

compute_logs:
  module: dt2it_pipeline.orchestrate.dagster_internals
  class: FileComputeLogManager
  config:
    base_dir:
      env: DT2IT_HOME

run_coordinator:
  module: dagster
  class: QueuedRunCoordinator

# Heavy steps (training, sampling, scoring) take the pool `gpu`: one at a time on one machine. Queued rounds run one
# after the other, in the order in which they were asked for, since each needs the one before.
concurrency:
  pools:
    default_limit: 1
    granularity: op
  runs:
    tag_concurrency_limits:
      - key: dt2it/round
        limit: 1

run_monitoring:
  enabled: true
  free_slots_after_run_end_seconds: 30

python_logs:
  python_log_level: INFO

telemetry:
  enabled: false

nux:
  enabled: false
"""

DAGSTER_YAML = f"{_SQLITE}\n{_DAGSTER}"  # of a project of one person
