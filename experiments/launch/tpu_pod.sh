#!/usr/bin/env bash
# A slice of a TPU v5e pod, without Kubernetes: 16 chips on 4 hosts, a process each.
#   PROJECT=... ZONE=us-west4-a BUCKET=... tpu_pod.sh
# Data and runs lie in a bucket that every host mounts.
set -eu
name=${NAME:-instructjax}
model=${MODEL:-meta-llama/Llama-3.1-8B-Instruct}
: "${PROJECT:?}" "${ZONE:?}" "${BUCKET:?}"
here=$(dirname "$0")
tpu=(gcloud compute tpus tpu-vm --project "$PROJECT" --zone "$ZONE")
hosts=(gcloud compute tpus tpu-vm ssh "$name" --project "$PROJECT" --zone "$ZONE" --worker=all)

"${tpu[@]}" create "$name" --accelerator-type v5litepod-16 --version v2-alpha-tpuv5-lite
"${tpu[@]}" scp "$here/restart.sh" "$name:" --worker=all
# Python of the image is 3.10, too old; uv brings its own.
"${hosts[@]}" --command 'curl -LsSf https://astral.sh/uv/install.sh | sh &&
  .local/bin/uv tool install --python 3.12 "instructjax[tpu]"'
"${hosts[@]}" --command "sudo apt-get install -y gcsfuse && mkdir -p work && gcsfuse $BUCKET work"
# On a pod the processes find each other: --distributed is all.
"${hosts[@]}" --command "./restart.sh .local/bin/instructjax finetune --model $model \
  --data work/rows.jsonl --out work/run --dtype bfloat16 --remat layer --row-length 4096 --rows 16 \
  --mesh fsdp=16 --distributed"
"${hosts[@]}" --command "./restart.sh .local/bin/instructjax score work/rows.jsonl --model work/run/model \
  --out work/scores.parquet --mesh fsdp=16 --distributed"
"${tpu[@]}" delete "$name" --quiet
