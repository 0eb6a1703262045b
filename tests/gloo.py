"""Processes of a test that train together on processors."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist


def join(rank: int, port: int, *, num_processes: int) -> None:
    """Make this process one of several, as a launcher would; the store listens on a local port."""
    torch.set_num_threads(1)
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes}
    launched |= {"LOCAL_WORLD_SIZE": num_processes, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in launched.items()})
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_processes)
