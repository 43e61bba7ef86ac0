#!/usr/bin/env bash
# A Cloud TPU slice from its creation to its deletion. `scripts/tpu.sh --help` tells how.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: scripts/tpu.sh COMMAND [ARGUMENTS]

  plan ARGS...    does the recipe fit this slice? compiles here, asks no cloud (vit-jax plan)
  create          make the slice, on demand
  queue           ask for the slice as a queued resource, and wait until it is there
  install         this clone's last commit onto all workers, with what MOUNT names mounted
  run ARGS...     start `python train.py ARGS` on all workers, and come back at once
  status          a line for each worker: running, ended STATUS, stopped, lost or idle
  watch           follow worker 0
  logs            the last lines of every worker
  ssh COMMAND...  run a command on all workers, or on WORKERS=0
  stop            save and end the training; the slice stays, and costs
  delete          delete the slice
  keep ARGS...    queue, install, run; after a preemption all of it again, until the training has
                  ended; then delete the slice

Settings are environment variables:
  PROJECT, ZONE   of Google Cloud
  NAME            the name of the slice
  TYPE            its accelerator type: v4-8, v5litepod-16, v5p-8, v6e-16, ...
  SPOT=1          create, queue, keep: spot capacity, cheaper and taken back at any time
  MOUNT           what all workers see, as SOURCE=DIR words: IP:/SHARE=/mnt/runs (NFS) or
                  gs://BUCKET=/mnt/data (gcsfuse)
  VARIABLES       run, keep: the training's own environment, as NAME=VALUE words
  RUNTIME         the image of the machines (follows from TYPE)
  POLL            queue, keep: seconds between two looks (60)
  TRIES           keep: ends in a row, each within half an hour of its start, before it gives up (5)
  LEAVE=1         keep: do not delete the slice at the end
  VIT_JAX         plan: the program (vit-jax)
  DRY_RUN=1       print the commands instead of running them
TEXT
}

mistake() {
  printf 'error: %s (see scripts/tpu.sh --help)\n' "$*" >&2
  exit 2
}

say() { printf '%s  %s\n' "$(date +%H:%M:%S)" "$*" >&2; }

# Switches are 1, or nothing.
for name in SPOT LEAVE DRY_RUN; do
  case ${!name:-} in
    '' | 0) printf -v "$name" '' ;;
    1) ;;
    *) mistake "$name=${!name}: wanted 1 or nothing" ;;
  esac
done
[[ ${POLL:=60} =~ ^[0-9]+([.][0-9]+)?$ ]] || mistake "POLL=$POLL: wanted seconds"
for word in ${MOUNT:-}; do
  [[ $word == *:/*=/* ]] || mistake "MOUNT=$word: wanted IP:/SHARE=/DIR or gs://BUCKET=/DIR"
done
[[ ${TRIES:=5} =~ ^[1-9][0-9]*$ ]] || mistake "TRIES=$TRIES: wanted a number from 1 up"

need() {
  local name
  for name in "$@"; do
    [[ -n ${!name:-} ]] || mistake "wanted $name=... in the environment"
  done
}

# ---- what a type is -------------------------------------------------------------------------------

runtime() {
  case $TYPE in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) mistake "TYPE=$TYPE: wanted v4-N, v5litepod-N, v5p-N or v6e-N, or RUNTIME=... beside it" \
      "(TPU7x comes through GKE alone)" ;;
  esac
}

# As `vit-jax plan` names it. The number in v4-N and v5p-N counts cores, two a chip.
topology() {
  case $TYPE in
    v5litepod-1 | v6e-1) grid=1x1 ;;
    v5litepod-4 | v6e-4) grid=2x2 ;;
    v5litepod-8 | v6e-8) grid=2x4 ;;
    v5litepod-16 | v6e-16) grid=4x4 ;;
    v5litepod-32 | v6e-32) grid=4x8 ;;
    v5litepod-64 | v6e-64) grid=8x8 ;;
    v5litepod-128 | v6e-128) grid=8x16 ;;
    v5litepod-256 | v6e-256) grid=16x16 ;;
    v4-8 | v5p-8) grid=2x2x1 ;;
    v4-16 | v5p-16) grid=2x2x2 ;;
    v4-32 | v5p-32) grid=2x2x4 ;;
    v4-64 | v5p-64) grid=2x4x4 ;;
    v4-128 | v5p-128) grid=4x4x4 ;;
    v4-256 | v5p-256) grid=4x4x8 ;;
    v4-512 | v5p-512) grid=4x8x8 ;;
    *) mistake "TYPE=$TYPE: no topology known; give vit-jax plan its --topology yourself" ;;
  esac
  case $TYPE in
    v5litepod-*) echo "v5e:$grid" ;;
    *) echo "${TYPE%%-*}:$grid" ;;
  esac
}

# ---- gcloud ---------------------------------------------------------------------------------------

exec 3>&1 # dry runs print here, also from inside $(...)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

quoted() {
  local line
  line=$(printf '%q ' "$@")
  printf '%s' "${line% }"
}

call() {
  if [[ -n $DRY_RUN ]]; then
    printf '%s\n' "$(quoted "$@")" >&3
  else
    "$@" 3>&-
  fi
}

tpus() { call gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE" --quiet; }

# shellcheck disable=SC2153 # NAME comes from the environment
on() { # WORKERS COMMAND
  tpus tpu-vm ssh "$NAME" --worker="$1" --ssh-flag=-oConnectTimeout=10 --command="$2"
}

# The state of a queued resource or of a machine; NONE where there is none. A question that was not
# answered is an error: it must not be taken for "there is none", and a second slice be made.
state() { # queue | machine
  local kind=queued-resources format='value(state.state)' usual=ACTIVE answer
  [[ $1 == queue ]] || kind=tpu-vm format='value(state)' usual=READY
  if answer=$(tpus "$kind" describe "$NAME" --format="$format" 2>"$scratch/describe"); then
    [[ -z $DRY_RUN ]] || answer=$usual
    printf '%s\n' "$answer"
  elif grep -q NOT_FOUND "$scratch/describe"; then
    echo NONE
  else
    cat "$scratch/describe" >&2
    return 1
  fi
}

# READY, WAITING, FAILED, or GONE: preempted, and its remains are in the way.
slice() {
  local queue machine
  queue=$(state queue) || return 1
  case $queue in
    NONE | FAILED) echo "$queue" ;;
    SUSPENDED) echo GONE ;;
    ACTIVE)
      # The queue may call a slice active for a while that has been preempted.
      machine=$(state machine) || return 1
      case $machine in
        READY) echo READY ;;
        NONE | PREEMPTED | TERMINATED | STOPPED | STOPPING) echo GONE ;;
        *) echo "WAITING ($machine)" ;;
      esac
      ;;
    *) echo "WAITING ($queue)" ;;
  esac
}

pause() { [[ -n $DRY_RUN ]] || sleep "$POLL"; }

# ---- commands -------------------------------------------------------------------------------------

create() {
  need TYPE
  local image=${RUNTIME:-} now
  [[ -n $image ]] || image=$(runtime)
  if [[ -z $DRY_RUN ]]; then
    now=$(state machine)
    if [[ $now != NONE ]]; then
      say "$NAME is there already: $now"
      return
    fi
  fi
  tpus tpu-vm create "$NAME" --accelerator-type="$TYPE" --version="$image" ${SPOT:+--spot}
}

enqueue() {
  local image=${RUNTIME:-}
  [[ -n $image ]] || image=$(runtime)
  tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="$image" ${SPOT:+--spot}
}

queue() {
  need TYPE
  [[ -n ${RUNTIME:-} ]] || runtime >/dev/null # a mistake is told before anything is asked
  if [[ -n $DRY_RUN ]]; then enqueue; fi
  local now before='' unanswered=0 refused=0
  while true; do
    if now=$(slice); then
      unanswered=0
    else
      ((++unanswered < 10)) || { say "gcloud has not answered ten times in a row"; return 1; }
      now=UNANSWERED
    fi
    if [[ $now != "$before" ]]; then say "$NAME: $now"; fi
    before=$now
    case $now in
      READY) return ;;
      NONE | GONE)
        if if [[ $now == NONE ]]; then enqueue; else remove; fi; then
          refused=0
        elif ((++refused >= ${1:-1})); then
          say "gcloud refused $refused times in a row"
          return 1
        fi
        ;;
      FAILED)
        tpus queued-resources describe "$NAME" --format='yaml(state)' >&2
        say "the request has failed, for the reason above; scripts/tpu.sh delete, then ask again"
        return 1
        ;;
    esac
    pause
  done
}

install() {
  local root word archive=$scratch/vit_jax.tar.gz
  local unpack="tar -xzf vit_jax.tar.gz -C vit_jax.new" worker="bash vit_jax.new/scripts/worker.sh"
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  git -C "$root" rev-parse --quiet --verify HEAD >/dev/null ||
    mistake "install: wanted a git clone, whose last commit goes onto the workers; $root is none"
  if [[ -n $(git -C "$root" status --porcelain --untracked-files=no) ]]; then
    say "note: changes that are not committed are left out"
  fi
  call git -C "$root" archive --format=tar.gz --output="$archive" HEAD &&
    tpus tpu-vm scp "$archive" "$NAME:vit_jax.tar.gz" --worker=all \
      --scp-flag=-oConnectTimeout=10 &&
    on all "rm -rf vit_jax.new && mkdir vit_jax.new && $unpack && $worker install" &&
    for word in ${MOUNT:-}; do
      on all "bash vit_jax/scripts/worker.sh mount $(quoted "${word%=*}" "${word##*=}")" || return
    done
}

run() {
  (($# > 0)) || mistake "run: wanted the arguments of train.py, such as --config configs/X.py"
  on all "${VARIABLES:+env $VARIABLES }bash vit_jax/scripts/worker.sh start $(quoted "$@")"
}

status() { on all "bash vit_jax/scripts/worker.sh status"; }
logs() { on all "bash vit_jax/scripts/worker.sh log"; }
stop() { on all "bash vit_jax/scripts/worker.sh stop"; }

remove() {
  local queue machine=NONE
  queue=$(state queue) || return
  if [[ $queue != NONE ]]; then
    tpus queued-resources delete "$NAME" --force # and the machines with it
    return
  fi
  machine=$(state machine) || return
  if [[ $machine == NONE ]]; then
    say "there is no $NAME"
  else
    tpus tpu-vm delete "$NAME"
  fi
}

# What the workers' lines of status mean together.
verdict() {
  awk '
    $2 == "ended" { $2 = $3 }
    NF <= 3 && $2 ~ /^(running|stopped|lost|idle|[0-9]+)$/ { ++workers; ++count[$2] }
    END {
      if (!workers) print "unknown"
      else if (count["running"] == workers) print "running"
      else if (count["running"] && !count["stopped"]) print "ending"
      else if (count["running"]) print "running" # and asked to stop: bounded by worker.sh
      else if (count["0"] == workers) print "finished"
      else if (count["stopped"]) print "stopped"
      else if (count["2"] == workers) print "refused"
      else print "failed"
    }'
}

# Waits for the end of what runs: finished, stopped, refused, failed or preempted.
outcome() {
  local now lines seen odd=0
  while true; do
    pause
    if now=$(slice); then
      if [[ $now != READY ]]; then
        echo preempted
        return
      fi
    fi
    lines=$(status) || lines=
    if [[ -n $DRY_RUN ]]; then lines="worker ended 0"; fi
    seen=$(verdict <<<"$lines")
    case $seen in
      running) odd=0 ;;
      # No answer, or some have ended: the others follow within a minute or two, or hang.
      unknown | ending) ((++odd < 5)) || { echo failed; return; } ;;
      *)
        echo "$seen"
        return
        ;;
    esac
  done
}

keep() {
  (($# > 0)) || mistake "keep: wanted the arguments of train.py, such as --config configs/X.py"
  need TYPE
  local end ends=0 refusals=0 patience=1 unsuccessful=0 started
  while true; do
    queue "$patience"
    patience=10 # after the first slice, a refusal may be of a moment
    started=$SECONDS
    if [[ -z $DRY_RUN && $(status 2>/dev/null | verdict) == running ]]; then
      say "a training runs on $NAME already: following that one"
      end=$(outcome)
    elif install && run "$@"; then
      say "running on $NAME; scripts/tpu.sh watch follows it, Ctrl-C here leaves it running"
      end=$(outcome)
    else
      end=failed
      pause
    fi
    say "$end after $(((SECONDS - started) / 60)) min"
    case $end in
      finished) break ;;
      refused)
        # After long work it may have been the storage or the network.
        if ((SECONDS - started >= 1800 && ++refusals < TRIES)); then
          say "every worker ended with an error after long work: once more"
          continue
        fi
        say "every worker ended with an error that a repetition would meet again:"
        break
        ;;
      stopped)
        say "by scripts/tpu.sh stop: the slice is still there, and costs (scripts/tpu.sh delete)"
        return
        ;;
      failed)
        ((SECONDS - started < 1800)) || ends=0
        if ((++ends >= TRIES)); then
          say "$ends times in a row: no more"
          break
        fi
        stop || true # a process that hangs would be in the way
        ;;
      preempted) ends=0 ;;
    esac
  done
  logs || true
  if [[ -z $LEAVE ]]; then
    until remove; do
      if ((++unsuccessful >= 10)); then
        say "NOT deleted: $NAME may be there and cost (scripts/tpu.sh delete)"
        return 1
      fi
      pause
    done
  fi
  case $end in
    finished) return 0 ;;
    refused) return 2 ;;
    *) return 1 ;;
  esac
}

(($# > 0)) || mistake "wanted a command"
command=$1
shift
case $command in
  -h | --help | help)
    usage
    exit
    ;;
  plan)
    need TYPE
    place=$(topology)
    call "${VIT_JAX:-vit-jax}" plan --topology "$place" "$@"
    exit
    ;;
esac
need PROJECT ZONE NAME
case $command in
  create | queue | install | status | logs | stop)
    (($# == 0)) || mistake "$command takes no arguments, got $*"
    "$command"
    ;;
  run | keep) "$command" "$@" ;;
  watch) on 0 "tail -n 40 -F vit_jax_run/log" ;;
  ssh)
    (($# > 0)) || mistake "ssh: wanted a command for all workers"
    on "${WORKERS:-all}" "$*"
    ;;
  delete) remove ;;
  *) mistake "there is no command $command" ;;
esac
