"""scripts/: a Cloud TPU slice and a SLURM job, with a `gcloud` and an `srun` of our own.

The fake gcloud keeps each worker in a directory, runs there what is sent to it, and answers
questions about states with what the test has laid down.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from vit_jax.config.overrides import fields_help

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the workers are Linux machines")

SCRIPTS = pathlib.Path(__file__).resolve().parents[1] / "scripts"
DOCS = SCRIPTS.parent / "docs"
WORKERS = ("worker-0", "worker-1")

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
case "$3 $4" in
  "queued-resources describe") answer queue ;;
  "tpu-vm describe") answer machine ;;
  "tpu-vm scp") for worker in worker-*; do cp "$5" "$worker/${6#*:}"; done ;;
  "tpu-vm ssh")
    status=0
    for word in "$@"; do [[ $word != --command=* ]] || command=${word#--command=}; done
    for worker in worker-*; do
      HOME=$FAKE/$worker bash -c "cd; $command" || status=$?
    done
    exit $status
    ;;
esac
"""
TOOLS = {
    "gcloud": GCLOUD,
    "uv": """#!/bin/sh
        echo "$*" >>"$HOME/uv_calls"
        [ "$1" = venv ] || exit 0
        mkdir -p "$HOME/vit_jax_env/bin"
        ln -s "$REAL_PYTHON" "$HOME/vit_jax_env/bin/python"
        """,
    "python3": """#!/bin/sh
        echo "$*" >>"$HOME/pip_calls"
        """,
    "pkill": "#!/bin/sh\nexit 1\n",  # there is nothing to end
}
# The n-th start of a worker ends with the n-th word of the file plan.NAME; `gone`: it says nothing.
TRAIN = """
import os, pathlib, sys
home = pathlib.Path(os.environ["HOME"])
starts = home.parent / f"starts.{home.name}"
with starts.open("a") as file:
    print(sys.argv[1:], file=file)
turn = (home.parent / f"plan.{home.name}").read_text().split()[starts.read_text().count("\\n") - 1]
if turn == "gone":
    os.kill(os.getppid(), 9)
sys.exit(int(turn))
"""


class Cloud:
    """A clone of a project with the scripts, and two workers."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path, self.clone = path, path / "clone"
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
            "POLL": "0.05",
            **dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "a"),
            **dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "a@b"),
            "PROJECT": "a-project",
            "ZONE": "a-zone",
            "NAME": "pod",
            "TYPE": "v5litepod-16",
            "RUNTIME": "v2-alpha-tpuv5-lite",
        }
        for words in (["init"], ["add", "."], ["commit", "-m", "all"]):
            subprocess.run(
                ["git", *words],
                cwd=self.clone,
                env=self.environment,
                check=True,
                capture_output=True,
            )

    def states(self, **lines: list[str]) -> None:
        """What the next questions about the queue and the machine are answered."""
        for name, values in lines.items():
            (self.path / name).write_text("".join(f"{value}\n" for value in values))

    def train(self, *workers: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Runs the script; workers: how the trainings of worker 0, 1 end, start after start."""
        for name, turns in zip(WORKERS, workers, strict=False):
            (self.path / f"plan.{name}").write_text(turns)
        return subprocess.run(
            [self.clone / "scripts" / "tpu.sh", "--config", "x y"],
            env=self.environment | settings,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self, part: str) -> list[str]:
        """The calls of gcloud in which `part` stands."""
        return [line for line in (self.path / "calls").read_text().splitlines() if part in line]


@pytest.fixture
def cloud(tmp_path: pathlib.Path) -> Cloud:
    return Cloud(tmp_path)


@pytest.mark.parametrize("script", sorted(SCRIPTS.iterdir()), ids=lambda path: path.name)
def test_script_is_sound(script: pathlib.Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
    helped = subprocess.run(["bash", script, "--help"], check=True, capture_output=True, text=True)
    assert helped.stdout.startswith("usage: ")
    assert not helped.stderr


@pytest.mark.parametrize("missing", ["PROJECT", "ZONE", "NAME", "TYPE", "RUNTIME"])
def test_a_mistake_is_one_line(cloud: Cloud, missing: str) -> None:
    result = cloud.train(**{missing: ""})
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"error: wanted {missing}=... in the environment (see scripts/tpu.sh --help)"
    ]


def test_a_training_that_is_taken_back_twice(cloud: Cloud) -> None:
    """Before it began, and while it ran: all of it again, then the slice is deleted."""
    cloud.states(
        queue=["NONE", "WAITING_FOR_RESOURCES", "BROKEN", "ACTIVE", "ACTIVE", "ACTIVE"],
        machine=["NONE", "NONE", "BROKEN", "PREEMPTED", "READY", "READY"],
    )
    result = cloud.train("gone 0", "gone 0", SPOT="1", SETUP="touch mounted")
    assert result.returncode == 0, result.stderr
    (create,) = cloud.calls("create")
    assert "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot" in create
    assert "--project=a-project --zone=a-zone --quiet" in create
    assert len(cloud.calls("queued-resources delete pod --force")) == 2
    for worker in WORKERS:
        starts = (cloud.path / f"starts.{worker}").read_text().splitlines()
        assert starts == ["['--config', 'x y']"] * 2
        home = cloud.path / worker
        assert (home / "mounted").exists()
        assert (home / "uv_calls").read_text().splitlines() == [
            "venv --quiet --python 3.12 vit_jax_env",
            *["pip install --quiet --python vit_jax_env/bin/python --editable vit_jax[tpu,gcs]"]
            * 2,
        ]
    assert "after 0 min: ended 0" in result.stderr


@pytest.mark.parametrize(
    ("workers", "status", "deleted"),
    [
        (("2", "2"), 2, 1),  # a mistake, which a repetition would meet again
        (("70", "70"), 70, 1),  # a bug, likewise
        (("143", "143"), 0, 0),  # stopped from outside
        (("1 1 1 1 1", "0 2 1 1 1"), 1, 1),
        (("2 0", "134 0"), 0, 1),  # one ended for the other did
    ],
)
def test_what_the_end_of_the_workers_means(
    cloud: Cloud, workers: tuple[str, str], status: int, deleted: int
) -> None:
    result = cloud.train(*workers)
    assert result.returncode == status, result.stderr
    assert len(cloud.calls("delete")) == deleted


def test_a_request_that_fails(cloud: Cloud) -> None:
    cloud.states(queue=["FAILED"])
    result = cloud.train("0", "0")
    assert result.returncode == 1
    assert "the request has failed, for the reason above" in result.stderr


def test_dry_run_is_one_round(cloud: Cloud) -> None:
    result = cloud.train("0", "0", DRY_RUN="1")
    assert result.returncode == 0
    kinds = [" ".join(line.split()[3:5]) for line in result.stdout.splitlines()]
    assert kinds == [
        "queued-resources create",
        "tpu-vm scp",
        "tpu-vm ssh",
        "tpu-vm ssh",
        "queued-resources delete",
    ]
    assert not (cloud.path / "calls").exists()


@pytest.mark.parametrize("name", ["cloud_tpu.md", "slurm.md"])
def test_guide_names_what_there_is(name: str) -> None:
    text = (DOCS / name).read_text()
    fields = set(re.findall(r"--(config\.(?!model\.kwargs\.)[a-z_.]*[a-z]\b)(?!\.\*)", text))
    assert fields
    assert fields <= set(re.findall(r"--(config\.\S+)", fields_help()))
    for path in re.findall(r"\b(?:configs|scripts|tests)/[\w/]+\.\w+", text):
        assert path == "configs/nope.py" or (DOCS.parent / path).exists(), path


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
