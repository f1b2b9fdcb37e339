from dt2it_pipeline import records
from dt2it_pipeline.ingest.decontaminate import decontaminate


def prompt(key, text, *pictures):
    return {
        "prompt_id": key,
        "source": "s",
        "system": "",
        "turns": [{"role": "user", "text": text}],
        "media": [{"kind": "image", "sha256": sha, "path": sha} for sha in pictures],
        "reference": None,
        "language": "en",
        "meta": "{}",
    }


def test_shared_pictures_and_shared_text_only_questions_are_removed_and_counted():
    prompts = [
        prompt("same picture", "q1", "m1", "m9"),
        prompt("other picture", "q2", "m2"),
        prompt("text", "What  IS it"),
    ]
    benchmark = records.table([prompt("b1", "q2", "m9"), prompt("b2", "what is it")], "prompts")
    pairs = records.table([records.make_pair(p["prompt_id"], "a", "b", source="s") for p in prompts], "pairs")
    clean, removed = decontaminate(pairs, records.table(prompts, "prompts"), benchmark)
    assert clean["prompt_id"].to_pylist() == ["other picture"]
    assert removed["reason"].to_pylist() == ["picture is in a benchmark", "question is in a benchmark"]
