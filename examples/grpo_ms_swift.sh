#!/usr/bin/env bash
# GRPO of ms-swift with a reward model of ours, on a CPU: three steps of the demo's base model.
#
#     make demo && bash examples/grpo_ms_swift.sh HOME/sources/demo CHECKPOINT OUTPUT
#
# ms-swift 4.6.0 wants older versions of TRL, PEFT and datasets than this project, so they go into OUTPUT/libraries, which
# only this run sees. On a machine with a GPU and a Qwen model: `swift rlhf` with the same arguments, less --use_cpu, and
# without the two lines that set token numbers.
set -euo pipefail
world=$(realpath "$1") output=$(realpath -m "$3") libraries=$(realpath -m "$3")/libraries
DT2IT_REWARD_MODEL=$(realpath "$2")
export DT2IT_REWARD_MODEL HF_HUB_OFFLINE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python=${PYTHON:-$PWD/.venv/bin/python}
serve=$("$python" -c "import dt2it_pipeline.serve as s; print(s.__path__[0])")
base=$("$python" -c "from dt2it_pipeline.config.paths import model_path; print(model_path('demo'))")
mkdir -p "$output"

[ -d "$libraries/qwen_vl_utils" ] || "$python" -m pip install --quiet --no-deps --target "$libraries" \
    ms-swift==4.6.0 trl==0.29.1 peft==0.20.0 datasets==4.8.4 modelscope==1.40.2 modelscope-hub==0.5.1 \
    json-repair==0.64.6 dacite==1.9.2 qwen-vl-utils

# Questions with their images, in the form of ms-swift.
"$python" - "$world" > "$output/questions.jsonl" <<'END'
import json, sys
for line in open(sys.argv[1] + "/prompts.jsonl"):
    row = json.loads(line)
    turn = {"role": "user", "content": "<image>" + row["question"]}
    print(json.dumps({"messages": [turn], "images": [sys.argv[1] + "/" + row["image"]]}))
END

# ms-swift takes the numbers of Qwen's image and video tokens for granted; the demo's vocabulary has others.
cat > "$output/demo_tokens.py" <<'END'
from swift.template.templates.qwen import Qwen2VLTemplate
Qwen2VLTemplate.image_token_id, Qwen2VLTemplate.video_token_id = 5, 6
END

# `swift rlhf`, after the project has made transformers import beside a CPU-only torch.
PYTHONPATH="$libraries:$PWD" "$python" -c "
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision; ensure_torchvision()
from swift.pipelines import rlhf_main; rlhf_main()" \
    --rlhf_type grpo --model "$base" --model_type qwen3_vl --tuner_type full --torch_dtype float32 --use_cpu true \
    --external_plugins "$output/demo_tokens.py" "$serve/swift_reward.py" --reward_funcs dt2it \
    --dataset "$output/questions.jsonl" --split_dataset_ratio 0 --num_generations 4 --per_device_train_batch_size 8 \
    --max_completion_length 32 --max_steps 3 --learning_rate 1e-4 --beta 0 --gradient_checkpointing false \
    --logging_steps 1 --save_strategy no --report_to none --use_hf true --output_dir "$output/training"
