"""The shipped configurations are what Accelerate's launcher and SLURM understand."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from runs import ROOT, environment, finished, metrics, parted, run_here, small_flags

CONFIGS = sorted((ROOT / "configs/accelerate").glob("*.yaml"))
SCRIPT = ROOT / "configs/slurm/pretrain.sbatch"
STEPS = ["--max_steps", "4", "--global_batch_size", "16", "--per_device_train_batch_size", "4"]
STEPS += ["--dropout", "0", "--save_steps", "0", "--optimizer", "adamw"]


def train_losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in metrics(run_dir) if row["split"] == "train"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs")


@pytest.fixture(scope="module")
def reference(folder: Path) -> list[float]:
    """The losses of one process."""
    run_here(folder, [*small_flags(folder), *STEPS, "--output_dir", "reference"])
    return train_losses(folder / "reference")


def test_all_layouts_are_there() -> None:
    names = {"single_gpu", "eight_gpus", "fsdp2", "zero2", "two_nodes"}
    assert {path.stem for path in CONFIGS} == names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key_and_the_launcher_every_setting(path: Path) -> None:
    config = load_config_from_file(str(path))  # refuses keys that it does not know
    known = {action.dest for action in launch_command_parser()._actions}
    assert set(config.fsdp_config or {}) <= known
    assert config.num_processes % config.num_machines == 0


@pytest.mark.parametrize(
    "path",
    parted(CONFIGS, slow=[path for path in CONFIGS if path.stem in ("fsdp2", "eight_gpus")]),
    ids=lambda path: path.stem,
)
def test_accelerate_launch_runs_it_on_processors_with_the_same_losses(
    folder: Path, reference: list[float], path: Path
) -> None:
    if path.stem == "two_nodes":
        pytest.skip("has a test of its own, with two nodes")
    num_processes = 1 if path.stem == "single_gpu" else 2
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path)]
    launcher += ["--num_processes", str(num_processes), "--main_process_port", "0"]
    flags = [*small_flags(folder), *STEPS, "--output_dir", path.stem]
    said = finished([*launcher, str(ROOT / "run_pretraining.py"), *flags], folder)
    assert f"{num_processes} process(es)" in said
    assert ("sharded" in said.splitlines()[0]) == (path.stem in ("fsdp2", "zero2"))
    assert train_losses(folder / path.stem) == pytest.approx(reference, rel=1e-5)  # float32


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Two network namespaces that see each other as 10.77.0.1 and .2 and nothing else."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("making network namespaces needs iproute2 and root")
    names = [f"bp{os.getpid()}{side}" for side in "ab"]
    links = [f"v{os.getpid()}{side}" for side in "ab"]
    made = [f"netns add {name}" for name in names]
    made += [f"link add {links[0]} type veth peer name {links[1]}"]
    for number, (name, link) in enumerate(zip(names, links, strict=True), start=1):
        made += [f"link set {link} netns {name} name veth0"]
        made += [f"-n {name} addr add 10.77.0.{number}/24 dev veth0"]
        made += [f"-n {name} link set lo up", f"-n {name} link set veth0 up"]
    try:
        for words in made:
            done = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"network namespaces cannot be made here: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:  # with its end of the link
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
def test_two_nodes_have_the_losses_of_one_process(
    folder: Path, reference: list[float], nodes: list[str]
) -> None:
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher += ["--config_file", str(ROOT / "configs/accelerate/two_nodes.yaml")]
    launcher += ["--num_processes", "2", "--main_process_ip", "10.77.0.1"]
    flags = [*small_flags(folder), *STEPS, "--num_cpu_threads", "1", "--output_dir", "nodes"]
    program = str(ROOT / "run_pretraining.py")
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", node, *launcher, "--machine_rank", str(rank), program, *flags],
            env=environment(folder) | {"GLOO_SOCKET_IFNAME": "veth0"},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, node in enumerate(nodes)
    ]
    try:
        printed = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], printed
    assert "2 process(es)" in printed[0]
    assert train_losses(folder / "nodes") == pytest.approx(reference, rel=1e-5)  # float32


# Stand-ins that a test of the script puts first in PATH: srun starts its command once a node, and
# what the nodes would launch is written down.
STAND_INS = {
    "scontrol": 'echo "scontrol $*" >> "$RECORD"; '
    'if [[ $1 == show ]]; then printf "n1\\nn2\\n"; fi',
    "srun": 'shift; pids=(); for id in 0 1; do SLURM_NODEID=$id "$@" & pids+=($!); done; '
    "trap 'kill ${pids[*]}' TERM; wait",
    "accelerate": 'echo "accelerate $*" >> "$RECORD"; sleep "${SECONDS_TO_RUN:-0}"; '
    'exit "${STATUS:-0}"',
}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment as SLURM gives it to a job on two nodes of eight GPUs."""
    for name, body in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    job = {"SLURM_JOB_ID": "41", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    job |= {"SLURM_GPUS_ON_NODE": "8", "RECORD": str(tmp_path / "record")}
    return os.environ | job | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}


def test_the_slurm_script_launches_each_node_with_its_rank(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    command = ["bash", str(SCRIPT), "--output_dir", str(tmp_path / "run"), "--data_files", "a b"]
    subprocess.run(command, env=cluster, cwd=ROOT, check=True, timeout=60)
    lines = (tmp_path / "record").read_text().splitlines()
    launched = sorted(line for line in lines if line.startswith("accelerate"))
    assert len(launched) == 2
    for rank, line in enumerate(launched):
        words = line.split()[2:]  # after `accelerate launch`
        parsed = launch_command_parser().parse_args(words)
        assert (parsed.num_machines, parsed.num_processes, parsed.machine_rank) == (2, 16, rank)
        assert (parsed.main_process_ip, parsed.main_process_port) == ("n1", 20041)
        assert Path(parsed.config_file).name == "two_nodes.yaml"
        assert parsed.training_script == "run_pretraining.py"
        assert line.endswith("--resume_from_checkpoint auto")


def test_the_slurm_script_ends_with_the_status_of_the_run(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    command = ["bash", str(SCRIPT), "--output_dir", str(tmp_path / "run")]
    # Its stand-in of srun returns 0 whatever the nodes do, so the failure is srun's own.
    (tmp_path / "bin/srun").write_text("#!/bin/bash\nexit 3\n")
    done = subprocess.run(command, env=cluster, cwd=ROOT, timeout=60)
    assert done.returncode == 3
    done = subprocess.run(command[:2], env=cluster, cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode and b"--output_dir" in done.stderr


def test_the_slurm_script_says_how_it_goes_on(tmp_path: Path, cluster: dict[str, str]) -> None:
    # SLURM runs a copy of the script.
    copy = shutil.copy(SCRIPT, tmp_path / "slurm_script")
    command = ["bash", str(copy), "--requeue_hint", "--output_dir", "/shared/my run"]
    done = subprocess.run(command, env=cluster, capture_output=True, text=True, check=True)
    assert "SIGUSR1 120 seconds before the time is over" in done.stdout
    assert "scontrol requeue 41" in done.stdout and "--resume_from_checkpoint auto" in done.stdout
    assert done.stdout.strip().endswith(r"pretrain.sbatch --output_dir /shared/my\ run")
    assert not (tmp_path / "record").exists()  # nothing is started
    text = SCRIPT.read_text()
    assert re.search(r"^#SBATCH --signal=B:USR1@120\b", text, flags=re.MULTILINE)
    assert re.search(r"^#SBATCH --requeue$", text, flags=re.MULTILINE)
    assert re.search(r"^trap requeue USR1$", text, flags=re.MULTILINE)


def test_the_slurm_script_goes_back_into_the_queue_when_told(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    record = tmp_path / "record"
    process = subprocess.Popen(
        ["bash", str(SCRIPT), "--output_dir", str(tmp_path / "run")],
        env=cluster | {"SECONDS_TO_RUN": "3"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not (record.exists() and record.read_text().count("accelerate launch") == 2):
        assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"pretrain.sbatch --output_dir {tmp_path / 'run'}" in printed
    assert re.search(r"^scontrol requeue 41$", record.read_text(), flags=re.MULTILINE)
