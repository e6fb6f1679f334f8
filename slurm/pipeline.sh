#!/bin/bash
# Submit the whole chain, each step waiting for the one before: shards (an array over subjects, then merged) and targets, pretrain,
# align, finetune, generate (an array), eval and lift (an array). Prints the numbers of the jobs and how to cancel them all.
#
#   slurm/pipeline.sh slurm/pipeline.demo.sh
#
# The settings say which steps there are, with which words and which options of sbatch. Account and partition come from the
# environment as sbatch reads it: SBATCH_ACCOUNT, SBATCH_PARTITION. When a step fails, what waits for it is cancelled. Mend the
# cause and submit the same again: what is done is found done.
set -euo pipefail
settings=$(realpath "${1:?give the settings, as slurm/pipeline.demo.sh}")
cd "${TTD_ROOT:-$(dirname "$0")/..}"
mkdir -p slurm-logs
declare -A options=()
# shellcheck source=slurm/pipeline.demo.sh
. "$settings"

# Submitted twice, a chain must not work twice in one folder: jobs of one name and settings wait for each other (singleton).
tag=$(cksum <<<"$settings" | cut -d" " -f1)
submitted=()
trap 'echo "cancel them all: scancel ${submitted[*]}"' EXIT
# submit JOBS NAME TEMPLATE WORDS... : after JOBS (numbers joined by colons, or none); leaves the number in $job
submit() {
  local after=$1 name=$2 template=$3 more
  shift 3
  read -ra more <<<"${options[$name]:-}"
  more+=("--dependency=${after:+afterok:$after,}singleton" --kill-on-invalid-dep=yes)
  job=$(sbatch --parsable --job-name="ttd-$name-$tag" "${more[@]}" "slurm/$template.sh" "$@")
  job=${job%%;*} # a federation names its cluster as well
  submitted+=("$job")
  printf '%-10s job %-8s %s\n' "$name" "$job" "${after:+after $after}"
}

# shards NAME ENTRY OUT_DIR WORDS... : an array over the subjects, then merged
shards() {
  local name=$1 entry=$2 out_dir=$3 last
  shift 3
  last=$(wc -w <<<"$SUBJECTS")
  options[$name]="${options[$name]:-} --array=0-$((last - 1))"
  submit "" "$name" build_shards "$entry" "$out_dir" "$SUBJECTS" "$@"
  submit "$job" merge command shards/merge.py "inputs=$out_dir.subjects" "output_dir=$out_dir"
}

ready=() # what alignment waits for
job=
[ -z "${PAIRED+set}" ] || shards paired build_paired "${PAIRED[@]}"
[ -z "${TARGETS+set}" ] || submit "$job" targets command shards/precompute_targets.py "${TARGETS[@]}"
[ -z "$job" ] || ready+=("$job")
job=
[ -z "${WINDOWS+set}" ] || shards windows build_unlabelled "${WINDOWS[@]}"
[ -z "${PRETRAIN+set}" ] || submit "$job" pretrain pretrain "${PRETRAIN[@]}"
[ -z "$job" ] || ready+=("$job")
submit "$(IFS=: && echo "${ready[*]}")" align align "${ALIGN[@]}"
submit "$job" finetune finetune "${FINETUNE[@]}"
submit "$job" generate generate "${GENERATE[@]}"
generated=$job
submit "$generated" eval eval "${EVAL[@]}"
[ -z "${LIFT+set}" ] || submit "$generated" lift lift "${LIFT[@]}"
