#!/usr/bin/env bash
# One machine with several GPUs: one process uses them all, so nothing is distributed.
#   pip install "instructjax[cuda]"
set -eu
here=$(dirname "$0")
model=${MODEL:-meta-llama/Llama-3.1-8B-Instruct}
data=${DATA:-rows.jsonl}
out=${OUT:-runs/llama}

"$here/restart.sh" instructjax finetune --model "$model" --data "$data" --out "$out" \
  --dtype bfloat16 --remat layer --row-length 4096 --rows 8 --mesh fsdp=8
"$here/restart.sh" instructjax score "$data" --model "$out/model" --out "$out/scores.parquet" \
  --mesh fsdp=8
