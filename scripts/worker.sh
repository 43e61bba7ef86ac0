#!/usr/bin/env bash
# What scripts/tpu.sh runs on each worker of a slice, in the home directory there.
set -euo pipefail

# The code is in ~/vit_jax, its Python in ~/vit_jax_env, and in ~/vit_jax_run what a run leaves:
# log, pid, status (of its end) and stopped (by request).
cd "$HOME"
state=vit_jax_run
mkdir -p "$state"

usage() {
  cat <<'TEXT'
usage: worker.sh install | mount SOURCE DIR | start ARGS... | status | log | stop
TEXT
}

fail() { # STATUS MESSAGE
  printf '%s error: %s\n' "$(hostname)" "$2" >&2
  exit "$1"
}

running() { # whether the process that was started is still there, and not another with its number
  local pid
  pid=$(cat "$state/pid" 2>/dev/null) && [[ $(ps -o args= -p "$pid" 2>/dev/null) == *train.py* ]]
}

install() {
  ! running || fail 1 "a training is running: scripts/tpu.sh stop comes first"
  # The runs of those who gave no --workdir.
  [[ ! -d vit_jax/runs ]] || mv vit_jax/runs vit_jax.new/runs
  rm -rf vit_jax
  mv vit_jax.new vit_jax
  # The images' own Python may be too old: uv brings one.
  PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || python3 -m pip install --user --quiet uv
  [[ -x vit_jax_env/bin/python ]] || uv venv --quiet --python 3.12 vit_jax_env
  uv pip install --quiet --python vit_jax_env/bin/python --editable 'vit_jax[tpu,gcs]'
  echo "$(hostname) installed"
}

# A fresh machine may still be updating itself: wait for the lock.
add_packages() { sudo apt-get -o DPkg::Lock::Timeout=300 install --yes -qq "$@"; }

install_gcsfuse() {
  local version=3.11.1 package
  package=gcsfuse_${version}_amd64.deb
  curl --fail --silent --show-error --location --output "/tmp/$package" \
    "https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v$version/$package"
  add_packages "/tmp/$package"
}

mount_shared() { # SOURCE DIR
  local source=$1 directory=$2
  if mountpoint --quiet "$directory"; then
    return
  fi
  sudo mkdir -p "$directory"
  case $source in
    gs://*)
      command -v gcsfuse >/dev/null || install_gcsfuse
      sudo chown "$(id -u):$(id -g)" "$directory"
      # Without its cache of names, for what one worker writes the others must see.
      gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "${source#gs://}" "$directory"
      ;;
    *:/*)
      command -v mount.nfs >/dev/null || add_packages nfs-common
      # Locks stay on this machine: NFSv3 keeps those of a machine that is gone for ever.
      sudo mount -t nfs -o local_lock=flock "$source" "$directory"
      sudo chmod 1777 "$directory" # a new share belongs to root
      ;;
    *) fail 2 "mount: wanted IP:/SHARE or gs://BUCKET, got $source" ;;
  esac
  echo "$(hostname) mounted $source at $directory"
}

start() {
  ! running || fail 1 "a training is running: scripts/tpu.sh stop comes first"
  [[ -x vit_jax_env/bin/python ]] || fail 1 "nothing is installed: scripts/tpu.sh install comes first"
  rm -f "$state/pid" "$state/status" "$state/stopped"
  # Of its own session and with no terminal: it outlives this connection.
  setsid nohup bash vit_jax/scripts/worker.sh supervise "$@" >>"$state/log" 2>&1 </dev/null &
  local looks
  for ((looks = 0; looks < 100; ++looks)); do
    if [[ -s $state/pid ]]; then
      echo "$(hostname) started"
      return
    fi
    sleep 0.1
  done
  fail 1 "the training did not start: see $HOME/$state/log"
}

supervise() {
  cd vit_jax
  echo "--- $(date --utc +%FT%TZ) train.py $*"
  ../vit_jax_env/bin/python train.py "$@" &
  local pid=$! status=0
  echo "$pid" >"../$state/pid"
  wait "$pid" || status=$?
  echo "--- $(date --utc +%FT%TZ) ended with status $status"
  echo "$status" >"../$state/status"
}

status() {
  local what=idle
  if running; then
    what=running
  elif [[ -s $state/status ]]; then
    what="ended $(cat "$state/status")"
    if [[ -e $state/stopped && $what != "ended 0" ]]; then what=stopped; fi
  elif [[ -s $state/pid ]]; then
    what=lost # the machine was started anew, or the training was killed with its supervisor
  fi
  echo "$(hostname) $what"
}

stop() {
  if running; then
    touch "$state/stopped"
    kill -TERM "$(cat "$state/pid")"
    local looks
    for ((looks = 0; looks < ${STOP_SECONDS:-300}; ++looks)); do
      running || break
      sleep 1
    done
    if running; then
      echo "$(hostname) does not end: killed"
      kill -KILL "$(cat "$state/pid")"
    fi
    sleep 1 # for the supervisor to note the status
  fi
  status
}

(($# > 0)) || fail 2 "wanted a command (see worker.sh --help)"
command=$1
shift
case $command in
  -h | --help) usage ;;
  install | start | supervise | status | stop) "$command" "$@" ;;
  mount)
    (($# == 2)) || fail 2 "mount: wanted SOURCE DIR"
    mount_shared "$@"
    ;;
  log) tail -n 20 "$state/log" | sed "s/^/$(hostname): /" ;;
  *) fail 2 "there is no command $command" ;;
esac
