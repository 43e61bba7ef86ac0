#!/usr/bin/env bash
# Trains on a Cloud TPU slice that may be taken back at any time. Single steps: docs/cloud_tpu.md.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: scripts/tpu.sh ARGUMENTS OF TRAIN.PY

Asks for a slice, waits for it, installs this clone's last commit on all workers and trains. Does so
again after a preemption or a failure, until the training has ended; then deletes the slice. Run it
in tmux, on a machine that stays up.

Environment:
  PROJECT, ZONE   of Google Cloud
  NAME            of the slice
  TYPE, RUNTIME   its accelerator type and image, such as v5litepod-16 and v2-alpha-tpuv5-lite
  SPOT=1          spot capacity: cheaper, and taken back at any time
  SETUP           a command for each worker before the training, such as the mount of shared storage
  POLL            seconds between two looks (60)
  DRY_RUN=1       print the commands of one round instead of running them
TEXT
}

mistake() {
  printf 'error: %s (see scripts/tpu.sh --help)\n' "$*" >&2
  exit 2
}

say() { printf '%s  %s\n' "$(date +%H:%M:%S)" "$*" >&2; }

[[ ${1:-} != -h && ${1:-} != --help ]] || { usage && exit; }
for name in PROJECT ZONE NAME TYPE RUNTIME; do
  [[ -n ${!name:-} ]] || mistake "wanted $name=... in the environment"
done
(($# > 0)) || mistake "wanted the arguments of train.py, such as --config configs/X.py"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ -n ${DRY_RUN:-} ]] || git -C "$root" rev-parse --quiet --verify HEAD >/dev/null ||
  mistake "wanted a git clone, got $root"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

tpus() {
  set -- gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE" --quiet
  if [[ -n ${DRY_RUN:-} ]]; then printf '%q ' "$@" && echo; else "$@"; fi
}

# Of the request (value(state.state)) or of the machines (value(state)). A question that was not
# answered must not be taken for "there is none", and a second slice be made.
state() { # queued-resources | tpu-vm
  local format='value(state)'
  [[ $1 == tpu-vm ]] || format='value(state.state)'
  if ! tpus "$1" describe "$NAME" --format="$format" 2>"$scratch/error"; then
    if grep -q NOT_FOUND "$scratch/error"; then echo NONE; else echo UNANSWERED; fi
  fi
}

request() {
  tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="$RUNTIME" ${SPOT:+--spot}
}

remove() { tpus queued-resources delete "$NAME" --force; } # and the machines with it

wait_for_slice() {
  local queue machine seen=''
  while true; do
    queue=$(state queued-resources) machine=$(state tpu-vm)
    [[ $seen == "$queue $machine" ]] || say "$NAME: request $queue, machines $machine"
    seen="$queue $machine"
    case $seen in
      "ACTIVE READY") return ;;
      "FAILED "*)
        tpus queued-resources describe "$NAME" --format='yaml(state)' >&2
        say "the request has failed, for the reason above; delete it and ask again"
        exit 1
        ;;
      "NONE "*) request || exit 1 ;;
      "SUSPENDED "* | "ACTIVE NONE" | "ACTIVE PREEMPTED" | "ACTIVE TERMINATED" | "ACTIVE STOP"*)
        remove || true
        ;;
    esac
    sleep "${POLL:-60}"
  done
}

prepare="rm -rf vit_jax && mkdir vit_jax && tar -xzf vit_jax.tar.gz -C vit_jax && \
python3 -m pip install --user --quiet uv && PATH=\$HOME/.local/bin:\$PATH && \
{ [ -d vit_jax_env ] || uv venv --quiet --python 3.12 vit_jax_env; } && \
uv pip install --quiet --python vit_jax_env/bin/python --editable 'vit_jax[tpu,gcs]'${SETUP:+ && $SETUP}"
# What an attempt before has left running would hold the TPU: it saves and ends.
train="pkill -TERM -f '[t]rain.py' && sleep 60; cd vit_jax && \
../vit_jax_env/bin/python train.py $(printf '%q ' "$@"); echo \"ended \$?\""

attempt() { # prints what the workers print; a line "ended STATUS" each
  { [[ -n ${DRY_RUN:-} ]] || git -C "$root" archive --output="$scratch/vit_jax.tar.gz" HEAD; } &&
    tpus tpu-vm scp "$scratch/vit_jax.tar.gz" "$NAME:vit_jax.tar.gz" --worker=all &&
    tpus tpu-vm ssh "$NAME" --worker=all --command="$prepare" &&
    tpus tpu-vm ssh "$NAME" --worker=all --command="$train"
}

[[ -z ${DRY_RUN:-} ]] || { request && attempt && remove && exit; }
for ((quick = 0; quick < 5; )); do # ends in a row, each within half an hour of its start
  wait_for_slice
  started=$SECONDS answered=true
  attempt | tee "$scratch/said" || answered=false
  ends=$(grep -o 'ended [0-9]*$' "$scratch/said" | sort -u | tr '\n' ' ') || ends=''
  say "after $(((SECONDS - started) / 60)) min: ${ends:-no answer}"
  if $answered && [[ $ends == "ended 0 " ]]; then remove && exit 0; fi
  if $answered && [[ $ends == "ended 143 " ]]; then
    say "stopped from outside, and saved: the slice is still there, and costs"
    exit 0
  fi
  if ((SECONDS - started < 1800)); then ((++quick)); else quick=0; fi
  # Every worker refused the command (2), or met a bug of ours (70): so would a repetition.
  if $answered && ((quick)) && [[ $ends =~ ^ended\ (2|70)\ $ ]]; then
    remove && exit "${BASH_REMATCH[1]}"
  fi
done
say "five failures in a row: no more; the slice is deleted"
remove && exit 1
