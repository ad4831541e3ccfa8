#!/usr/bin/env bash
# A slice of a TPU v5e pod, without Kubernetes: 16 chips on 4 hosts, a process each.
#   PROJECT=... ZONE=us-west4-a BUCKET=... HF_TOKEN=... tpu_pod.sh
# Data and runs lie in a bucket that every host mounts. Folders can be renamed in it, as those of
# checkpoints are, if it was made with a hierarchical namespace:
#   gcloud storage buckets create gs://$BUCKET --project $PROJECT --location us-west4 \
#     --uniform-bucket-level-access --enable-hierarchical-namespace
# HF_TOKEN is of an account that may read the model. If this script is cut off, it can be run again.
set -eu
name=${NAME:-instructjax}
model=${MODEL:-meta-llama/Llama-3.1-8B-Instruct}
: "${PROJECT:?}" "${ZONE:?}" "${BUCKET:?}"
here=$(dirname "$0")
tpu=(gcloud compute tpus tpu-vm --project "$PROJECT" --zone "$ZONE")
hosts=(gcloud compute tpus tpu-vm ssh "$name" --project "$PROJECT" --zone "$ZONE" --worker=all)

"${tpu[@]}" describe "$name" >/dev/null 2>&1 ||
  "${tpu[@]}" create "$name" --accelerator-type v5litepod-16 --version v2-alpha-tpuv5-lite
trap 'echo "the slice $name is there, and is paid for: run this again, or delete it" >&2' ERR
"${tpu[@]}" scp "$here/restart.sh" "$name:" --worker=all
# Python of the image is 3.10, too old; uv brings its own.
"${hosts[@]}" --command 'curl -LsSf https://astral.sh/uv/install.sh | sh &&
  .local/bin/uv tool install --python 3.12 "instructjax[tpu]"'
# What one host writes the others see at once: nothing of the bucket is remembered.
"${hosts[@]}" --command "mountpoint -q work || {
  packages=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL \$packages/doc/apt-key.gpg | sudo tee \$key >/dev/null
  echo \"deb [signed-by=\$key] \$packages gcsfuse-\$(lsb_release -cs) main\" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update -qq && sudo apt-get install -qqy gcsfuse && mkdir -p work &&
    gcsfuse --metadata-cache-ttl-secs 0 $BUCKET work
}"
# On a pod the processes find each other: --distributed is all.
"${hosts[@]}" --command "HF_TOKEN=${HF_TOKEN:-} ./restart.sh .local/bin/instructjax finetune --model $model \
  --data work/rows.jsonl --out work/run --dtype bfloat16 --remat layer --row-length 4096 --rows 16 \
  --mesh fsdp=16 --distributed"
"${hosts[@]}" --command "./restart.sh .local/bin/instructjax score work/rows.jsonl --model work/run/model \
  --out work/scores.parquet --mesh fsdp=16 --distributed"
"${tpu[@]}" delete "$name" --quiet
