"""Two real processes in one gloo group on the CPU, kept for a whole test session: starting them costs seconds."""

import os
import socket
import traceback

import torch
import torch.distributed as dist

TIMEOUT = 100


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(rank, size, port, pipe):
    """Run what comes through the pipe until None does."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    dist.init_process_group("gloo")
    while (job := pipe.recv()) is not None:
        function, args, kwargs = job
        former = dict(os.environ)
        try:
            pipe.send((True, function(*args, **kwargs)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        os.environ.clear()
        os.environ |= former  # accelerate's plugins leave switches behind


class TwoRanks:
    """``ranks(function, *args)`` calls an importable function in both processes and returns both results.

    A process that does not answer waits for the other for ever: both are ended, and the next call starts new ones.
    """

    def __init__(self, size=2):
        self.size, self.processes, self.pipes = size, [], []

    def start(self):
        context, port = torch.multiprocessing.get_context("spawn"), free_port()
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, self.size, port, theirs), daemon=True)
            process.start()
            self.processes.append(process)
            self.pipes.append(ours)

    def stop(self):
        for process in self.processes:
            process.kill()
            process.join()
        self.processes, self.pipes = [], []

    def __call__(self, function, *args, **kwargs):
        if not self.processes:
            self.start()
        for pipe in self.pipes:
            pipe.send((function, args, kwargs))
        answers = [pipe.recv() if pipe.poll(TIMEOUT) else None for pipe in self.pipes]
        if None in answers:
            self.stop()
        broken = [
            f"rank {rank}: {a[1] if a else 'no answer'}" for rank, a in enumerate(answers) if not (a and a[0])
        ]
        if broken:
            raise AssertionError("\n".join(broken))
        return [answer[1] for answer in answers]
