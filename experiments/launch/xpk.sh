#!/usr/bin/env bash
# The same as jobset.yaml by way of xpk, which makes the cluster, the image and the JobSet.
#   PROJECT=... ZONE=us-west4-a HF_TOKEN=... xpk.sh
# The cluster mounts a bucket at /work (xpk storage attach), made with a hierarchical namespace, so that
# folders of checkpoints can be renamed. Exit code 2, a wrong call, would fail again: it ends the
# workload as if all were done, and the log has the reason.
set -eu
: "${PROJECT:?}" "${ZONE:?}"
model=${MODEL:-meta-llama/Llama-3.1-8B-Instruct}
where=(--project "$PROJECT" --zone "$ZONE" --cluster instructjax)

xpk cluster create "${where[@]}" --tpu-type v5litepod-16 --num-slices 1 --spot
xpk workload create "${where[@]}" --workload finetune --tpu-type v5litepod-16 --num-slices 1 \
  --max-restarts 100 --base-docker-image python:3.12 --script-dir . \
  --env HF_TOKEN="${HF_TOKEN:-}" \
  --command "pip install 'instructjax[tpu]' || exit 1; instructjax finetune --model $model \
  --data /work/rows.jsonl --out /work/run --dtype bfloat16 --remat layer --row-length 4096 \
  --rows 16 --mesh fsdp=16 --distributed && exit 0; [ \$? = 2 ]"
