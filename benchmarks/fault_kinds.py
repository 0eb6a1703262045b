"""The faults by name: what is done, to how many processes, with which flags."""

from __future__ import annotations

import signal

from disk_faults import (
    after_a_kill,
    cut_a_file,
    disk_full_while,
    disk_read_only,
    empty_the_newest,
    flip_a_bit,
    lose_run_json,
)
from fault_setting import Kind
from several_process_faults import (
    all_killed_for_others,
    launcher_killed,
    one_killed_of_restarting,
    one_process,
)
from single_process_faults import (
    at_random,
    hub_away,
    killed_in_evaluation,
    killed_in_start,
    killed_while,
    second_run,
    worker_killed,
)

PUSH = "--save_steps 50 --push_to_hub --hub_model_id tester/words --hub_strategy every_save"
# With dropout the curve is one of the number of processes.
ANY_LAYOUT = "--dropout 0 --optimizer adamw --global_batch_size 16 --per_device_train_batch_size 4"


FAULTS: dict[str, Kind] = {
    "killed at random": Kind(at_random(signal.SIGKILL)),
    "killed before it trains": Kind(killed_in_start),
    "killed in preparation": Kind(killed_while("bert_pretrain/prepared/*.tmp")),
    "killed in a checkpoint": Kind(killed_while("checkpoints/step-*.tmp")),
    "killed in an evaluation": Kind(killed_in_evaluation),
    "killed in the export": Kind(killed_while("final.new*")),
    "killed in a push": Kind(killed_while("hub/[0-9]*-*", seconds=3.0), flags=PUSH, with_hub=True),
    "Hub away in a push, then killed": Kind(hub_away, flags=PUSH, with_hub=True),
    "SIGTERM at random": Kind(at_random(signal.SIGTERM), is_kill=False),
    "SIGINT at random": Kind(at_random(signal.SIGINT), is_kill=False),
    "SIGUSR1 at random": Kind(at_random(signal.SIGUSR1), is_kill=False),
    "SIGHUP at random": Kind(at_random(signal.SIGHUP), is_kill=False),
    "loader worker killed": Kind(worker_killed, flags="--dataloader_num_workers 2"),
    "second run in the same directory": Kind(second_run, is_kill=False),
    "killed, bit flipped in the newest checkpoint": Kind(after_a_kill(flip_a_bit)),
    "killed, newest checkpoint cut short": Kind(after_a_kill(cut_a_file)),
    "killed, newest checkpoint empty": Kind(after_a_kill(empty_the_newest)),
    "killed, run.json lost": Kind(after_a_kill(lose_run_json)),
    "disk full in preparation": Kind(
        disk_full_while("bert_pretrain/prepared/*.tmp"), is_kill=False
    ),
    "disk full in a checkpoint": Kind(disk_full_while("checkpoints/step-*.tmp"), is_kill=False),
    "disk full, no row of metrics": Kind(
        disk_full_while(None), flags="--save_steps 0", is_kill=False
    ),
    "disk read-only": Kind(disk_read_only, is_kill=False),
    "one of two killed": Kind(one_process(signal.SIGKILL), num_processes=2),
    "one of two told to stop": Kind(one_process(signal.SIGTERM), num_processes=2, is_kill=False),
    "one of two hangs": Kind(one_process(signal.SIGSTOP), num_processes=2, is_kill=False),
    "launcher of two killed": Kind(launcher_killed, num_processes=2),
    "one of two killed, torchrun restarts": Kind(
        one_killed_of_restarting, num_processes=2, max_restarts=1
    ),
    "sharded (FSDP), one of two killed": Kind(
        one_process(signal.SIGKILL), num_processes=2, is_sharded=True
    ),
    "killed, goes on with another number of processes": Kind(
        all_killed_for_others, other_num_processes=2, recipe=ANY_LAYOUT, tolerance=1e-5
    ),
}
