"""scripts/: a Cloud TPU slice and a SLURM job, with a `gcloud` and an `srun` of our own.

The fake gcloud keeps each worker in a directory, runs there what is sent to it, and answers
questions about states with what the test has laid down.
"""

import contextlib
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

from vit_jax.config.overrides import help_text

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the workers are Linux machines")

SCRIPTS = pathlib.Path(__file__).resolve().parents[1] / "scripts"
DOCS = SCRIPTS.parent / "docs"
WORKERS = ("worker-0", "worker-1")
SETTINGS = {"PROJECT": "a-project", "ZONE": "a-zone", "NAME": "pod", "TYPE": "v5litepod-16"}

GCLOUD = r"""#!/usr/bin/env bash
# Words of the call, one line each call; then what the slice would do.
cd "$FAKE"
printf '%s\n' "$*" >>calls
answer() { # FILE: its first line; the last one stays
  local first
  first=$(head -n 1 "$1")
  (($(wc -l <"$1") == 1)) || sed -i 1d "$1"
  case $first in
    NONE) echo 'ERROR: NOT_FOUND: Resource was not found' >&2; exit 1 ;;
    BROKEN) echo 'ERROR: the network is down' >&2; exit 1 ;;
    *) echo "$first" ;;
  esac
}
end() { # all processes of a worker, as when its machine goes
  for pid in $(cat worker-*/vit_jax_run/pid worker-*/supervisor 2>/dev/null); do
    [[ $(readlink "/proc/$pid/cwd") != "$FAKE"/* ]] || kill -KILL "$pid"
  done
}
case "$3 $4" in
  "queued-resources describe") answer queue ;;
  "tpu-vm describe") answer machine ;;
  "queued-resources delete" | "tpu-vm delete") end; rm -rf worker-*/* ;;
  "tpu-vm scp") for worker in worker-*; do cp "$5" "$worker/${6#*:}"; done ;;
  "tpu-vm ssh")
    [[ ! -e unreachable ]] || exit 255
    workers=$(ls -d worker-*) status=0
    [[ $* == *--worker=all* ]] || workers=worker-0
    for word in "$@"; do [[ $word != --command=* ]] || command=${word#--command=}; done
    for worker in $workers; do
      HOME=$FAKE/$worker bash -c "cd; $command" || status=$?
    done
    exit $status
    ;;
esac
"""
TOOLS = {
    "gcloud": GCLOUD,
    "hostname": '#!/bin/sh\nbasename "$HOME"\n',
    "uv": """#!/usr/bin/env bash
        echo "$*" >>uv_calls
        [[ $1 == venv ]] || exit 0
        mkdir -p vit_jax_env/bin
        ln -s "$REAL_PYTHON" vit_jax_env/bin/python
        """,
    "sudo": '#!/bin/sh\necho "sudo $*" >>"$HOME/sudo_calls"\n',
    "gcsfuse": '#!/bin/sh\necho "$*" >>"$HOME/gcsfuse_calls"\n',
    "mountpoint": '#!/bin/sh\nexec test -e "$HOME/mounted"\n',
}
# What the n-th start of a worker does is the n-th word of the file plan.NAME: end with a status at
# once, `wait` to be asked to, or `hang` and not hear it.
TRAIN = """
import os, pathlib, signal, sys, time
home = pathlib.Path(os.environ["HOME"])
starts = home.parent / f"starts.{home.name}"
with starts.open("a") as file:
    print(sys.argv[1:], file=file)
(home / "supervisor").write_text(str(os.getppid()))
turns = (home.parent / f"plan.{home.name}").read_text().split()
turn = turns[starts.read_text().count("\\n") - 1]
if turn.isdigit():
    print("error: planned" if int(turn) else "trained")
    sys.exit(int(turn))
signal.signal(signal.SIGTERM, signal.SIG_IGN if turn == "hang" else lambda *_: sys.exit(143))
print("ready", os.environ.get("WORD"), flush=True)
time.sleep(60)
"""


class Cloud:
    """A clone of a project with the scripts, and two workers."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.clone = path / "clone"
        tools = path / "tools"
        tools.mkdir()
        for name, text in TOOLS.items():
            (tools / name).write_text(textwrap.dedent(text))
            (tools / name).chmod(0o755)
        shutil.copytree(SCRIPTS, self.clone / "scripts")
        (self.clone / "train.py").write_text(TRAIN)
        for worker in WORKERS:
            (path / worker).mkdir()
        self.states(queue=["ACTIVE"], machine=["READY"])
        self.environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(path),
            "FAKE": str(path),
            "REAL_PYTHON": sys.executable,
            "POLL": "0.2",
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@b",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@b",
        } | SETTINGS
        for command in (["init"], ["add", "."], ["commit", "-m", "all"]):
            self.git(*command)

    def git(self, *words: str) -> None:
        subprocess.run(
            ["git", *words], cwd=self.clone, env=self.environment, check=True, capture_output=True
        )

    def states(self, **lines: list[str]) -> None:
        """What the next questions about the queue and the machine are answered."""
        for name, values in lines.items():
            (self.path / name).write_text("".join(f"{value}\n" for value in values))

    def plan(self, *workers: str) -> None:
        """What the trainings of worker 0, 1 do, start after start."""
        for name, turns in zip(WORKERS, workers, strict=True):
            (self.path / f"plan.{name}").write_text(turns)

    def run(self, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """scripts/tpu.sh WORDS, with further settings in the environment."""
        return subprocess.run(
            [self.clone / "scripts" / "tpu.sh", *words],
            env=self.environment | settings,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def done(self, *words: str, **settings: str) -> str:
        """As `run`, which has to succeed; its output."""
        result = self.run(*words, **settings)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def calls(self, part: str = "") -> list[str]:
        """The calls of gcloud in which `part` stands."""
        path = self.path / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if part in line]

    def end_processes(self, worker: str = "worker-?") -> None:
        """Kills what was started on a worker, but no process that has its number by now."""
        for name in ("supervisor", "vit_jax_run/pid"):
            for path in self.path.glob(f"{worker}/{name}"):
                pid = int(path.read_text())
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if os.readlink(f"/proc/{pid}/cwd").startswith(str(self.path)):
                        os.kill(pid, signal.SIGKILL)

    def starts(self, worker: str = "worker-0") -> list[str]:
        return (self.path / f"starts.{worker}").read_text().splitlines()

    def wait_for(self, *lines: str) -> None:
        """Until `status` says this of the workers."""
        wanted = [f"{worker} {line}" for worker, line in zip(WORKERS, lines, strict=True)]
        said: list[str] = []
        for _ in range(100):
            # While an installation is under way there is nothing to ask.
            if (said := self.run("status").stdout.splitlines()) == wanted:
                return
            time.sleep(0.1)
        pytest.fail(f"wanted {wanted}, the last answer was {said}")


@pytest.fixture
def cloud(tmp_path: pathlib.Path) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.end_processes()


@pytest.mark.parametrize("script", sorted(SCRIPTS.iterdir()), ids=lambda path: path.name)
def test_script_is_sound(script: pathlib.Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
    helped = subprocess.run(["bash", script, "--help"], check=True, capture_output=True, text=True)
    assert helped.stdout.startswith("usage: ")
    assert not helped.stderr


def test_help_names_every_command() -> None:
    text = (SCRIPTS / "tpu.sh").read_text()
    usage, _, rest = text.partition("\nTEXT\n")
    commands = re.findall(r"^  ([a-z |]+)\)", rest.rpartition("\ncase $command in\n")[2], re.M)
    names = {name for line in commands for name in line.split(" | ")} | {"plan"}
    assert {"create", "queue", "install", "run", "keep", "delete"} <= names
    assert names == set(re.findall(r"^  ([a-z]+) .*  \S", usage, re.M))


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        ([], {}, "wanted a command"),
        (["creat"], {}, "there is no command creat"),
        (["create"], {"PROJECT": ""}, "wanted PROJECT=... in the environment"),
        (["keep", "--config", "x"], {"TYPE": ""}, "wanted TYPE=... in the environment"),
        (["status", "all"], {}, "status takes no arguments, got all"),
        (["run"], {}, "run: wanted the arguments of train.py"),
        (["keep"], {}, "keep: wanted the arguments of train.py"),
        (["ssh"], {}, "ssh: wanted a command"),
        (["create"], {"TYPE": "v3-8"}, "TYPE=v3-8: wanted v4-N, v5litepod-N, v5p-N or v6e-N"),
        (["queue"], {"TYPE": "tpu7x-16"}, "TPU7x comes through GKE alone"),
        (["plan"], {"TYPE": "v4-7"}, "TYPE=v4-7: no topology known"),
        (["create"], {"SPOT": "yes"}, "SPOT=yes: wanted 1 or nothing"),
        (["queue"], {"POLL": "soon"}, "POLL=soon: wanted seconds"),
        (["keep", "--config", "x"], {"TRIES": "0"}, "TRIES=0: wanted a number from 1 up"),
        (["create"], {"MOUNT": "/a=/b"}, "MOUNT=/a=/b: wanted IP:/SHARE=/DIR or gs://BUCKET=/DIR"),
        (["create"], {"MOUNT": "gs://a"}, "MOUNT=gs://a: wanted IP:/SHARE=/DIR or"),
    ],
)
def test_mistake_is_one_line(
    cloud: Cloud, words: list[str], settings: dict[str, str], message: str
) -> None:
    result = cloud.run(*words, **settings)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not cloud.calls()


AT = "--project=a-project --zone=a-zone --quiet"
DESCRIBE = [f"gcloud compute tpus {kind} describe pod" for kind in ("queued-resources", "tpu-vm")]
SSH = r"gcloud compute tpus tpu-vm ssh pod --worker=all --ssh-flag=-oConnectTimeout=10"


@pytest.mark.parametrize(
    ("words", "settings", "lines"),
    [
        (
            ["create"],
            {},
            [
                "gcloud compute tpus tpu-vm create pod --accelerator-type=v5litepod-16 "
                f"--version=v2-alpha-tpuv5-lite {AT}"
            ],
        ),
        (
            ["create"],
            {"TYPE": "v4-8", "SPOT": "1", "RUNTIME": "an-image"},
            [
                "gcloud compute tpus tpu-vm create pod --accelerator-type=v4-8 "
                f"--version=an-image --spot {AT}"
            ],
        ),
        (
            ["queue"],
            {"SPOT": "1", "TYPE": "v6e-16"},
            [
                "gcloud compute tpus queued-resources create pod --node-id=pod "
                f"--accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --spot {AT}",
                rf"{DESCRIBE[0]} --format=value\(state.state\) {AT}",
                rf"{DESCRIBE[1]} --format=value\(state\) {AT}",
            ],
        ),
        (
            ["run", "--config", "configs/X.py", "--config.model.name=a b"],
            {},
            [
                rf"{SSH} --command=bash\ vit_jax/scripts/worker.sh\ start\ --config\ configs/X.py"
                rf"\ --config.model.name=a\\\ b {AT}"
            ],
        ),
        (["stop"], {}, [rf"{SSH} --command=bash\ vit_jax/scripts/worker.sh\ stop {AT}"]),
        (["ssh", "ls", "-l"], {}, [rf"{SSH} --command=ls\ -l {AT}"]),
        (
            ["plan", "--config", "configs/X.py"],
            {},
            ["vit-jax plan --topology v5e:4x4 --config configs/X.py"],
        ),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) and len(value) < 3 else "",
)
def test_dry_run_prints(
    cloud: Cloud, words: list[str], settings: dict[str, str], lines: list[str]
) -> None:
    assert cloud.done(*words, DRY_RUN="1", **settings).splitlines() == lines
    assert not cloud.calls()


def test_dry_run_of_keep_is_one_round(cloud: Cloud) -> None:
    lines = cloud.done(
        "keep", "--config", "x", DRY_RUN="1", MOUNT="10.0.0.2:/a=/mnt/a"
    ).splitlines()
    steps = ["queued-resources create", " archive ", "tpu-vm scp", "worker.sh\\ install"]
    steps += ["worker.sh\\ mount\\ 10.0.0.2:/a\\ /mnt/a", "worker.sh\\ start\\ --config\\ x"]
    steps += ["worker.sh\\ status", "worker.sh\\ log", "queued-resources delete pod --force"]
    assert [step for line in lines for step in steps if step in line] == steps
    assert not cloud.calls()


@pytest.mark.parametrize("kind", ["v4", "v5litepod", "v5p", "v6e"])
def test_topology_has_the_chips_of_the_type(kind: str) -> None:
    is_cube = kind in ("v4", "v5p")  # whose types count cores, two a chip
    for chips in (1, 4, 8, 16, 32, 64, 128, 256):
        result = subprocess.run(
            [SCRIPTS / "tpu.sh", "plan"],
            env={
                "PATH": os.environ["PATH"],
                "TYPE": f"{kind}-{chips * (1 + is_cube)}",
                "DRY_RUN": "1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if is_cube and chips == 1:
            assert result.returncode == 2
            continue
        place = result.stdout.split()[-1]
        generation, _, grid = place.partition(":")
        assert generation == kind.replace("litepod", "e")
        sides = [int(side) for side in grid.split("x")]
        assert len(sides) == (3 if is_cube else 2), place
        assert math.prod(sides) == chips, place


def _table_of_types() -> list[tuple[str, int, str, str]]:
    """Type, chips, topology and image of each row of the guide's table."""
    rows = re.findall(r"^\| `v\d.*$", (DOCS / "cloud_tpu.md").read_text(), re.M)
    assert len(rows) == 4
    entries = []
    for row in rows:
        types, chips, _, _, places, image = (
            [word.strip("` ") for word in cell.split(",")] for cell in row.strip("|").split("|")
        )
        kind, generation = types[0].partition("-")[0], places[0].partition(":")[0]
        for name, number, place in zip(types, chips, places, strict=True):
            full = f"{kind}-{name.rpartition('-')[2]}"
            grid = place.rpartition(":")[2]
            entries.append((full, int(number), f"{generation}:{grid}", image[0]))
    return entries


@pytest.mark.parametrize(("kind", "chips", "place", "image"), _table_of_types())
def test_guide_and_script_agree_on(
    cloud: Cloud, kind: str, chips: int, place: str, image: str
) -> None:
    assert f"--topology {place}" in cloud.done("plan", TYPE=kind, DRY_RUN="1")
    assert f"--version={image} " in cloud.done("create", TYPE=kind, DRY_RUN="1")
    assert math.prod(map(int, place.partition(":")[2].split("x"))) == chips


@pytest.mark.parametrize("name", ["cloud_tpu.md", "slurm.md"])
def test_guide_names_what_there_is(name: str) -> None:
    text = (DOCS / name).read_text()
    fields = set(re.findall(r"--(config\.(?!model\.kwargs\.)[a-z_.]*[a-z]\b)(?!\.\*)", text))
    assert fields
    assert fields <= set(re.findall(r"--(config\.\S+)", help_text("a program")))
    commands = set(re.findall(r"scripts/tpu\.sh ([a-z]+)", text))
    assert commands <= set(re.findall(r"^  ([a-z]+) ", (SCRIPTS / "tpu.sh").read_text(), re.M))
    for path in re.findall(r"\b(?:configs|scripts|tests)/[\w/]+\.\w+", text):
        assert path == "configs/nope.py" or (DOCS.parent / path).exists(), path


def test_create_makes_no_second_one(cloud: Cloud) -> None:
    assert "pod is there already: READY" in cloud.run("create").stderr
    cloud.states(machine=["BROKEN"])
    result = cloud.run("create")
    assert result.returncode == 1
    assert "the network is down" in result.stderr
    assert not cloud.calls(" create ")
    cloud.states(machine=["NONE"])
    cloud.done("create")
    assert len(cloud.calls("tpu-vm create")) == 1


def test_queue_waits_until_all_is_there(cloud: Cloud) -> None:
    cloud.states(
        queue=["NONE", "BROKEN", "WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "ACTIVE"],
        machine=["CREATING", "READY"],
    )
    result = cloud.run("queue")
    assert result.returncode == 0
    told = [line.partition("  ")[2] for line in result.stderr.splitlines() if "pod:" in line]
    assert told == [
        f"pod: {word}"
        for word in (
            *("NONE", "UNANSWERED", "WAITING (WAITING_FOR_RESOURCES)"),
            *("WAITING (CREATING)", "READY"),
        )
    ]
    assert len(cloud.calls("queued-resources create")) == 1


@pytest.mark.parametrize("remains", [{"queue": ["SUSPENDED"]}, {"machine": ["PREEMPTED"]}])
def test_queue_clears_away_what_was_preempted(cloud: Cloud, remains: dict[str, list[str]]) -> None:
    old, new = ["SUSPENDED"] * 2, ["DELETING", "NONE", "ACTIVE"]
    old = old if "queue" in remains else ["ACTIVE"] * 2
    cloud.states(queue=old + new, machine=[*remains.get("machine", []), "READY"])
    cloud.done("queue")
    order = [line.split()[3] for line in cloud.calls() if "describe" not in line]
    assert order == ["delete", "create"]


@pytest.mark.parametrize("answer", ["FAILED", pytest.param("BROKEN", marks=pytest.mark.slow)])
def test_queue_gives_up(cloud: Cloud, answer: str) -> None:
    cloud.states(queue=[answer])
    result = cloud.run("queue")
    assert result.returncode == 1
    wanted = {"FAILED": "the request has failed", "BROKEN": "not answered ten times"}[answer]
    assert wanted in result.stderr
    assert not cloud.calls(" create ")


def test_delete_takes_what_is_there(cloud: Cloud) -> None:
    cloud.done("delete")
    cloud.states(queue=["NONE"])
    cloud.done("delete")
    cloud.states(machine=["NONE"])
    assert "there is no pod" in cloud.run("delete").stderr
    deletions = [line.split()[2] for line in cloud.calls("delete")]
    assert deletions == ["queued-resources", "tpu-vm"]
    assert "--force" in cloud.calls("queued-resources delete")[0]


def test_install_brings_the_last_commit(cloud: Cloud) -> None:
    (cloud.clone / "gone.py").touch()
    cloud.git("add", ".")
    cloud.git("commit", "-m", "one more")
    cloud.done("install")
    cloud.git("rm", "gone.py")
    cloud.git("commit", "-m", "one less")
    (cloud.clone / "train.py").write_text("changed")
    assert "not committed" in cloud.run("install").stderr
    for worker in WORKERS:
        home = cloud.path / worker
        assert (home / "vit_jax" / "train.py").read_text() == TRAIN
        assert not (home / "vit_jax" / "gone.py").exists()
        calls = (home / "uv_calls").read_text().splitlines()
        assert [call.split()[0] for call in calls] == ["venv", "pip", "pip"]
        assert calls[-1].endswith("--editable vit_jax[tpu,gcs]")


def test_install_wants_a_clone(cloud: Cloud) -> None:
    shutil.rmtree(cloud.clone / ".git")
    result = cloud.run("install")
    assert result.returncode == 2
    assert "wanted a git clone" in result.stderr


def test_install_mounts_once(cloud: Cloud) -> None:
    home = cloud.path / "worker-1"
    both = "10.0.0.2:/share=/mnt/there gs://bucket=/mnt/data"
    cloud.done("install", MOUNT=both)
    called = [(home / name).read_text() for name in ("sudo_calls", "gcsfuse_calls")]
    assert "sudo mount -t nfs -o local_lock=flock 10.0.0.2:/share /mnt/there\n" in called[0]
    assert called[1] == "--implicit-dirs --metadata-cache-ttl-secs=0 bucket /mnt/data\n"
    (home / "mounted").touch()
    cloud.done("install", MOUNT=both)
    assert [(home / name).read_text() for name in ("sudo_calls", "gcsfuse_calls")] == called


@pytest.mark.slow
def test_run_starts_watches_and_stops_all(cloud: Cloud) -> None:
    assert "scripts/tpu.sh install comes first" in _install_then_run_too_early(cloud)
    cloud.plan("wait 3", "wait 3")
    cloud.done("run", "--config", "x", "--config.name=it's a b", VARIABLES="WORD='a b' HOST=c")
    cloud.wait_for("running", "running")
    for worker in WORKERS:
        assert cloud.starts(worker) == [str(["--config", "x", "--config.name=it's a b"])]
    for words in (["run", "--config", "x"], ["install"]):
        result = cloud.run(*words)
        assert result.returncode == 1
        assert "worker-0 error: a training is running" in result.stderr
    assert cloud.done("stop").splitlines() == [f"{worker} stopped" for worker in WORKERS]
    assert "worker-1: ready a b" in cloud.done("logs")
    assert "ended with status 143" in cloud.done("logs")
    cloud.done("run", "--config", "x")
    cloud.wait_for("ended 3", "ended 3")
    assert cloud.done("ssh", "pwd", WORKERS="0").split() == [str(cloud.path / "worker-0")]


def _install_then_run_too_early(cloud: Cloud) -> str:
    cloud.done("install")
    for worker in WORKERS:
        shutil.rmtree(cloud.path / worker / "vit_jax_env")
    early = cloud.run("run", "--config", "x")
    assert early.returncode == 1
    cloud.done("install")
    return early.stderr


def test_status_of_a_machine_that_was_started_anew(cloud: Cloud) -> None:
    cloud.done("install")
    assert cloud.done("status").splitlines() == [f"{worker} idle" for worker in WORKERS]
    cloud.plan("wait", "3")
    cloud.done("run", "--config", "x")
    cloud.wait_for("running", "ended 3")
    cloud.end_processes("worker-0")
    cloud.wait_for("lost", "ended 3")


@pytest.mark.slow
def test_keep_goes_on_after_a_preemption(cloud: Cloud) -> None:
    cloud.plan("wait 0", "wait 0")
    cloud.states(
        queue=[
            *("NONE", "ACTIVE", "ACTIVE", "SUSPENDED"),  # asked for, there, running, preempted
            *("SUSPENDED", "SUSPENDED", "DELETING", "NONE", "ACTIVE"),  # cleared away, asked again
        ]
    )
    result = cloud.run("keep", "--config", "x", SPOT="1")
    assert result.returncode == 0, result.stderr
    for worker in WORKERS:
        assert cloud.starts(worker) == [str(["--config", "x"])] * 2
    assert len(cloud.calls("queued-resources create")) == 2
    assert all("--spot" in call for call in cloud.calls("queued-resources create"))
    assert len(cloud.calls("queued-resources delete")) == 2
    assert cloud.calls()[-1].startswith("compute tpus queued-resources delete")
    assert "preempted after" in result.stderr
    assert "worker-0: trained" in result.stdout


@pytest.mark.parametrize(
    ("plan", "starts", "status", "said"),
    [
        (("0", "0"), 1, 0, "finished"),
        # A mistake, told by all before they begin.
        (("2", "2"), 1, 2, "every worker ended with an error"),
        # A process was killed, the others ended because of it.
        (("137 0", "2 0"), 2, 0, "failed"),
        # One does not end although the other has: it is killed.
        pytest.param(("1 0", "hang 0"), 2, 0, "failed", marks=pytest.mark.slow),
        pytest.param(
            ("1 1 1 0", "0 1 1 0"), 3, 1, "3 times in a row: no more", marks=pytest.mark.slow
        ),
    ],
    ids=["finished", "refused", "killed", "hangs", "gives_up"],
)
def test_keep_repeats_what_may_help(
    cloud: Cloud, plan: tuple[str, str], starts: int, status: int, said: str
) -> None:
    cloud.plan(*plan)
    result = cloud.run("keep", "--config", "x", TRIES="3", STOP_SECONDS="1")
    assert result.returncode == status, result.stderr
    assert len(cloud.starts()) == starts
    assert said in result.stderr
    assert len(cloud.calls("queued-resources delete")) == 1


@pytest.mark.slow
def test_keep_leaves_what_it_is_told_to(cloud: Cloud) -> None:
    cloud.plan("0 wait", "0 wait")
    assert cloud.run("keep", "--config", "x", LEAVE="1").returncode == 0
    errors = cloud.path / "errors"
    with errors.open("w") as file:
        keep = subprocess.Popen(
            [cloud.clone / "scripts" / "tpu.sh", "keep", "--config", "x"],
            env=cloud.environment,
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    try:
        cloud.wait_for("running", "running")
        cloud.done("stop")
        assert keep.wait(timeout=30) == 0
    finally:
        keep.kill()
        keep.wait()
    assert "the slice is still there, and costs" in errors.read_text()
    assert len(cloud.starts()) == 2
    assert not cloud.calls("delete")


def test_keep_gives_up_on_workers_out_of_reach(cloud: Cloud) -> None:
    (cloud.path / "unreachable").touch()
    result = cloud.run("keep", "--config", "x", TRIES="2")
    assert result.returncode == 1
    assert "2 times in a row: no more" in result.stderr
    assert len(cloud.calls("queued-resources delete")) == 1


# ---- SLURM ---------------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path: pathlib.Path) -> pathlib.Path:
    """A clone, and programs of SLURM's names that note their calls."""
    for name in ("srun", "squeue", "scontrol"):
        tool = tmp_path / name
        tool.write_text(f'#!/bin/sh\necho {name} "$@" >>"$CALLS"\neval "${name.upper()}"\n')
        tool.chmod(0o755)
    (tmp_path / "train.py").touch()
    return tmp_path


def _sbatch(slurm: pathlib.Path, *words: str, **settings: str) -> subprocess.Popen[str]:
    environment = {
        "PATH": f"{slurm}:{os.environ['PATH']}",
        "CALLS": str(slurm / "calls"),
        "SLURM_JOB_ID": "17",
        "SLURM_SUBMIT_DIR": str(slurm),
        "PYTHON": "python3",
    }
    return subprocess.Popen(
        ["bash", SCRIPTS / "slurm.sbatch", *words],
        env=environment | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _calls(slurm: pathlib.Path) -> list[str]:
    path = slurm / "calls"
    return path.read_text().splitlines() if path.exists() else []


STEP = "srun --kill-on-bad-exit=0 --label python3 train.py --config x --config.a=b c"
ASKED = "squeue --noheader --jobs=17 --format=%T"


@pytest.mark.parametrize(
    ("status", "state", "more"),
    [
        (0, "RUNNING", []),
        (2, "RUNNING", []),
        (143, "RUNNING", [ASKED, "scontrol requeue 17"]),
        (143, "CANCELLED", [ASKED]),
        (143, "PENDING", [ASKED]),
    ],
)
def test_slurm_queues_again_only_at_the_time_limit(
    slurm: pathlib.Path, status: int, state: str, more: list[str]
) -> None:
    job = _sbatch(
        slurm, *STEP.split()[5:7], "--config.a=b c", SRUN=f"exit {status}", SQUEUE=f"echo {state}"
    )
    job.communicate(timeout=20)
    assert job.returncode == status
    assert _calls(slurm) == [STEP, *more]


def test_slurm_shell_outlives_the_signal(slurm: pathlib.Path) -> None:
    job = _sbatch(slurm, "--config", "x", SRUN="sleep 1; exit 143", SQUEUE="echo RUNNING")
    while not _calls(slurm):
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=20)
    assert job.returncode == 143
    assert _calls(slurm)[-1] == "scontrol requeue 17"


def test_slurm_dry_run(slurm: pathlib.Path) -> None:
    output, _ = _sbatch(slurm, "--config", "x", "--config.a=b c", DRY_RUN="1").communicate()
    assert output.strip() == STEP.replace("b c", r"b\ c")
    assert not _calls(slurm)


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        ([], {}, "wanted the arguments of train.py"),
        (["--config", "x"], {"PYTHON": "no/python"}, "PYTHON=no/python cannot be run"),
        (["--config", "x"], {"SLURM_SUBMIT_DIR": "/"}, "no train.py in /: submit from the clone"),
        (["--config", "x"], {"SLURM_JOB_ID": ""}, "this is a job: sbatch scripts/slurm.sbatch"),
    ],
)
def test_slurm_mistake_is_one_line(
    slurm: pathlib.Path, words: list[str], settings: dict[str, str], message: str
) -> None:
    job = _sbatch(slurm, *words, **settings)
    _, errors = job.communicate(timeout=20)
    assert job.returncode == 2
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1
    assert not _calls(slurm)


def test_slurm_options() -> None:
    text = (SCRIPTS / "slurm.sbatch").read_text()
    given = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.M))
    # JAX gives the n-th task of a node its n-th GPU, so that all tasks have to see all of them.
    assert given["ntasks-per-node"] == given["gpus-per-node"]
    assert "gpus-per-task" not in given
    # To the tasks: with B: the shell alone would hear it.
    assert given["signal"].startswith("TERM@")
    assert given.keys() >= {"requeue", "open-mode"}
    # SLURM reads no option after the first command.
    assert "#SBATCH" not in text.partition("\nset -euo pipefail\n")[2]
