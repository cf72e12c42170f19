#!/usr/bin/env bash
# Run ERA, its control, data filtering and RMU on a pretrained model, SmolLM2-135M-Instruct, for SEEDS seeds (default 3)
# from FIRST on (default 0), then print a table of all runs there. Forget documents train the added units alone: in ERA's
# own form, which routes MLP units, the attention and the embeddings of a pretrained model learn the language. The model
# comes from a Python package into a virtual environment of the script's own, ENV. TEXTS is a file or a folder of .txt,
# .jsonl or .parquet; FAMILY=second_language unlearns an invented language in them instead of the stories about forests.
# Further arguments are overrides of every run. The same command resumes interrupted runs.
# usage: SEEDS=3 FAMILY=stories_era METHODS="era control" ENV=FOLDER scripts/pretrained_era.sh TEXTS [trainer=smoke …]
set -euo pipefail
texts=${1:?give a file or a folder of texts}
shift
. "$(dirname "$0")/pretrained_model.sh" # root, env, model
family=${FAMILY:-stories_era}
first=${FIRST:-0}
seeds=$(seq -s, "$first" $((first + ${SEEDS:-3} - 1)))
data=("dataset.files='$texts'" dataset.tokenizer=pretrained dataset.length=128 dataset.stories=200 dataset.test_stories=32)
[ "$family" = stories_era ] && data+=(dataset=text) # second_language reads files itself
size=(trainer.precision=auto trainer.epochs=1 trainer.batch_size=4 trainer.lr=0.0001 trainer.warmup_steps=10 trainer.tune_steps=6)
size+=('relearn.documents=[8]' 'relearn.rates=[1,3,10]' relearn.every=3 trainer.unlearn_steps=12 completions=null)
case " $* " in *" trainer=smoke "*)
    data+=(dataset.stories=48 dataset.test_stories=24)
    size+=(trainer.tune_steps=2 'relearn.documents=[4]' trainer.unlearn_steps=2) ;;
esac
# 64 units in each of the 30 layers; the penalty on activations would add a nat to the loss, and shrink the model's own units
expanded=("model.expand=[$(seq -s, 0 29)]" model.added=64 model.added_scale=10 losses.l1={})
run() { # METHOD NAME [OVERRIDE …]
    local method=$1
    shift
    "$env/bin/gradroute-run" -m "experiment=$method" model=hf "model.pretrained='$model'" "${data[@]}" "${size[@]}" \
        "seed=$seeds" output_dir=outputs/pretrained "$@"
}
tuned=('finetune.documents=[8]' finetune.every=3)
[ "$family" = stories_era ] && era=stories_era || era=second_language/era
for method in ${METHODS:-era control filtering rmu}; do
    case $method in
    era) run "$era" routing=forget_words_alone "${expanded[@]}" "${tuned[@]}" "$@" ;;
    control) run "$family/control" "${expanded[@]}" "${tuned[@]}" "$@" ;;
    rmu) run "$family/rmu" 'unlearn.layers=[5,6,7]' unlearn.norm=null unlearn.norm_factor=3 unlearn.retain=32 "$@" ;;
    *) run "$family/$method" "$@" ;;
    esac
done
"$env/bin/python" "$root/scripts/pretrained_table.py" outputs/pretrained --csv outputs/pretrained/numbers.csv
