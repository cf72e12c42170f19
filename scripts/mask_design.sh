#!/usr/bin/env bash
# Find masks by every method on the problems in scripts/mask_design/search, which were fixed before anything was measured,
# each with the same number of updates, and compare them on five fresh seeds. The table is printed, and kept in OUT.
# usage: [PROBLEMS="mnist_rare conv_site"] [METHODS="random tpe pilot learned"] [FASHION=FOLDER] scripts/mask_design.sh [OVERRIDE …]
#   SMOKE=1     tiny runs of one problem, to see that everything works
#   FASHION     a folder with Fashion-MNIST; without it, torchvision downloads it
set -euo pipefail
here=$(dirname "$0")
out=${OUT:-outputs}
problems=${PROBLEMS:-fashion_split fashion_classes mnist_ten mnist_rare language_era language_sgtm conv_site resnet_site mnist_unlabelled language_unlabelled}
methods=${METHODS:-random tpe pilot learned}
small=()
if [ -n "${SMOKE:-}" ]; then
  [ -n "${PROBLEMS:-}" ] || small=("model.hidden=[32]")
  problems=${PROBLEMS:-mnist_rare}
  small+=(trainer=smoke trainer.train_limit=512 trainer.test_limit=64 trainer.batch_size=16 trainer.epochs=5
    search.budget=320 search.final.seeds=2 search.guess=null search.pilot.points=32 search.pilot.checked=2)
fi
for problem in $problems; do
  own=()
  case $problem in fashion_*) [ -z "${FASHION:-}" ] || own=("dataset.root=$FASHION") ;; esac
  for method in $methods; do
    gradroute-search --config-dir "$here/mask_design" "search=$problem" "method=$method" "output_dir=$out" \
      "${small[@]}" "${own[@]}" "$@"
  done
done
python "$here/mask_design_table.py" "$out/searches" --problems $problems
