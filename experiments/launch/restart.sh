#!/usr/bin/env bash
# Runs a command again and again until it is done, as a cluster's own supervisor would:
#   restart.sh instructjax finetune config.toml --out run --distributed
# When a process is lost, the others stop with exit code 1; each is started again by its own copy of
# this script, they meet again, and the run goes on from the last whole checkpoint.
set -u

for ((attempt = 1; attempt <= ${ATTEMPTS:-100}; attempt++)); do
  "$@"
  code=$?
  case $code in
    0 | 2 | 130) exit "$code" ;; # done; the call itself is wrong; interrupted by hand
    126 | 127) exit "$code" ;;   # there is no such program
  esac
  echo "restart.sh: exit code $code; attempt $attempt" >&2
  sleep "${PAUSE:-10}"
done
exit "$code"
