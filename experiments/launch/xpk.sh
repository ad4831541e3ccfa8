#!/usr/bin/env bash
# The same as jobset.yaml by way of xpk, which makes the cluster, the image and the JobSet.
#   PROJECT=... ZONE=us-west4-a xpk.sh
# The cluster mounts a bucket at /work (xpk storage attach).
set -eu
: "${PROJECT:?}" "${ZONE:?}"
model=${MODEL:-meta-llama/Llama-3.1-8B-Instruct}
where=(--project "$PROJECT" --zone "$ZONE" --cluster instructjax)

xpk cluster create "${where[@]}" --tpu-type v5litepod-16 --num-slices 1 --spot
xpk workload create "${where[@]}" --workload finetune --tpu-type v5litepod-16 --num-slices 1 \
  --max-restarts 100 --base-docker-image python:3.12 --script-dir . \
  --command "pip install 'instructjax[tpu]' && instructjax finetune --model $model \
  --data /work/rows.jsonl --out /work/run --dtype bfloat16 --remat layer --row-length 4096 \
  --rows 16 --mesh fsdp=16 --distributed"
