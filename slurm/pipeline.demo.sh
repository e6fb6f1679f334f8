# shellcheck shell=bash disable=SC2034
# Settings of slurm/pipeline.sh: the demo's chain on a cluster. The raw recordings are there already:
#   python shards/build_simulated.py --config configs/shards/simulated.yaml
# Leave out what is there already (PAIRED, TARGETS, WINDOWS, PRETRAIN) or is not wanted (LIFT).
SUBJECTS="01 02 03 04"
PAIRED=(data/simulated/paired --config configs/shards/simulated_paired.yaml)
TARGETS=(--config configs/shards/simulated_targets.yaml)
WINDOWS=(data/simulated/unlabelled --config configs/shards/simulated_unlabelled.yaml)
PRETRAIN=(runs/demo/pretrain --config configs/pretrain/demo.yaml)
ALIGN=(runs/demo/align --config configs/align/demo.yaml)
FINETUNE=(runs/demo/finetune --config configs/finetune/demo.yaml)
GENERATE=(runs/demo/generate --config configs/generate/demo.yaml)
EVAL=(runs/demo/eval-lora --config configs/eval/demo.yaml "pictures={runs: {no LoRA: null}, compare: []}")
LIFT=(runs/demo/lift --config configs/lift/demo.yaml)
# Options of sbatch by step; beside paired and windows: merge, targets, pretrain, align, finetune, generate, eval, lift.
declare -A options=(
  [pretrain]="--nodes=2 --gpus-per-node=2"
  [finetune]="--nodes=2 --gpus-per-node=2"
  [generate]="--array=0-1"
  [lift]="--array=0-1"
)
