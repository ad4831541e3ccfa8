#!/usr/bin/env bash
# Runs a command again and again until it is done, as a cluster's own supervisor would:
#   restart.sh instructjax finetune config.toml --out run --distributed
# When a process is lost, the others stop with exit code 1; each is started again by its own copy of
# this script, they meet again, and the run goes on from the last whole checkpoint. SIGTERM and Ctrl-C
# are passed on, and end the script with the command.
set -um
child=""
stop=""
pass_on() {
  stop=1
  [ -z "$child" ] || kill "-$1" -- "-$child" 2>/dev/null
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

for ((attempt = 1; attempt <= ${ATTEMPTS:-100}; attempt++)); do
  "$@" &
  child=$!
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal has ended the wait, not the command
    wait "$child"
    code=$?
  done
  child=""
  [ -z "$stop" ] || exit "$code"
  case $code in
    0 | 2 | 130) exit "$code" ;; # done; the call itself is wrong; interrupted by hand
    126 | 127) exit "$code" ;;   # there is no such program
  esac
  echo "restart.sh: exit code $code; attempt $attempt" >&2
  sleep "${PAUSE:-10}"
done
exit "$code"
