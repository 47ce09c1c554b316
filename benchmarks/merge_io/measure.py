"""One measurement of merge_io in a process of its own: seconds of wall and CPU time, and resident memory.

Memory is ``VmHWM`` (peak resident set) after the work less what was resident before it, when all imports were done.
"""

import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlora.merge.checkpoints import ModelMergeConfig

__all__ = ["copy", "linear_family", "mergekit", "peft_into", "phases", "vlora", "vlora_into", "warmed"]

BLOCK = 4 * 2**20
Result = dict[str, Any]


def timed(work: Callable[[], Any], folder: Path | None = None) -> Result:
    """Wall and CPU seconds of a call, and memory above what was there; with a folder, free pages are made first."""
    made = {} if folder is None else {"copy_before": free_pages(folder)}
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew from what is resident now
    before, wall, cpu = _status("VmRSS"), time.perf_counter(), time.process_time()
    work()
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "memory": _status("VmHWM") - before,
        "before": before,
        "load": os.getloadavg()[0],
        **made,
    }


def free_pages(folder: Path) -> float:
    """Seconds of a copy that is made and deleted: it leaves the pages that the next output will have.

    On a virtual machine a page that nobody has used for some seconds is the host's to find first, which takes longer
    than a copy. So this comes after all imports, right before the work that is measured.
    """
    return copy(folder, os.cpu_count() or 1, ready=False)["wall"]


def warmed(folder: Path, names: Sequence[str] = ("base", "a", "b")) -> Result:
    """Bring a measurement to a known start: what others wrote is on the disk, the inputs are in the page cache.

    Returns:
        Seconds that this took (many where the inputs had left the cache), and the load average.
    """
    start, buffer = time.perf_counter(), bytearray(BLOCK)
    os.sync()
    for name in names:
        with (folder / name / "model.safetensors").open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return {"warmed": time.perf_counter() - start, "load_before": os.getloadavg()[0]}


def copy(folder: Path, threads: int, inputs: int = 2, *, ready: bool = True) -> Result:
    """Read so many models block by block and write one of them, pre-sized and flushed: the floor of any merge."""
    files = [
        os.open(folder / name / "model.safetensors", os.O_RDONLY) for name in ("a", "b", "base")[:inputs]
    ]
    size = os.fstat(files[0]).st_size
    target = folder / "copy.safetensors"

    def part(number: int, output: int) -> None:
        view = memoryview(bytearray(BLOCK))
        for offset in range(number * BLOCK, size, threads * BLOCK):
            counts = [os.preadv(file, [view], offset) for file in files]
            os.pwrite(output, view[: counts[0]], offset)

    def work() -> None:
        output = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.posix_fallocate(output, 0, size)
        workers = [threading.Thread(target=part, args=(i, output)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        os.fsync(output)
        os.close(output)

    found = timed(work, folder if ready else None)
    target.unlink()
    return found


def vlora(folder: Path, method: str, threads: int, tile: str = "") -> Result:
    """A merge of two models (with their base, if the method has one) by the streaming engine; ``tile``: entries."""
    from vlora.merge.checkpoints import make_plan
    from vlora.merge.checkpoints.rules import Rule
    from vlora.merge.checkpoints.run import carry_out

    Rule.tile_entries = int(tile or Rule.tile_entries)
    config = _merge(folder, method, threads)
    plan = make_plan(config)  # imports what is left to import, so that it counts as the interpreter's own
    found = timed(lambda: carry_out(make_plan(config)), folder)
    shutil.rmtree(folder / "out")
    return {**found, "planned_memory": plan.estimate.memory_bytes, "planned_seconds": plan.estimate.seconds}


def phases(folder: Path, method: str, threads: int) -> Result:
    """The same merge, with its CPU seconds by phase; what measuring itself costs is in them."""
    from benchmarks.merge_io.phases import recorded
    from vlora.merge.checkpoints import make_plan
    from vlora.merge.checkpoints.run import carry_out

    plan = make_plan(_merge(folder, method, threads))
    with recorded() as found:
        spent = timed(lambda: carry_out(plan), folder)
    shutil.rmtree(folder / "out")
    return {**spent, "phases": found.spent}


def _merge(folder: Path, method: str, threads: int) -> "ModelMergeConfig":
    from vlora.merge.checkpoints import ModelMergeConfig, ModelSource

    return ModelMergeConfig(
        method=method, models=tuple(ModelSource(path=str(folder / name)) for name in "ab"), threads=threads,
        base_model=None if method == "linear" else str(folder / "base"), output=str(folder / "out"),
    )  # fmt: skip


def vlora_into(folder: Path, threads: int) -> Result:
    """A rank-16 adapter into its base by the streaming engine."""
    from vlora.merge.checkpoints import ModelMergeConfig, make_plan
    from vlora.merge.checkpoints.run import carry_out
    from vlora.merge.config import AdapterSource

    config = ModelMergeConfig(
        adapters=(AdapterSource(path=str(folder / "adapter")),), base_model=str(folder / "base"), threads=threads,
        output=str(folder / "out"),
    )  # fmt: skip
    make_plan(config)
    found = timed(lambda: carry_out(make_plan(config)), folder)
    shutil.rmtree(folder / "out")
    return found


def peft_into(folder: Path, threads: int) -> Result:
    """The same by PEFT: load the base, load the adapter, ``merge_and_unload``, save."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)

    def work() -> None:
        base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
        merged = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
        merged.save_pretrained(folder / "out")  # type: ignore[operator]
        with (folder / "out" / "model.safetensors").open("rb") as file:
            os.fsync(file.fileno())

    found = timed(work, folder)
    shutil.rmtree(folder / "out")
    return found


def mergekit(folder: Path, program: str, method: str, threads: int) -> Result:
    """The same merge by mergekit, as a child process; its start-up is measured by ``--help`` and stands beside."""
    lines = [f"merge_method: {method}", "dtype: bfloat16", "models:"]
    for name in "ab":
        lines += [f"  - model: {folder / name}", "    parameters:", "      weight: 1.0"]
        if method == "ties":
            lines.append("      density: 0.2")
    if method != "linear":
        lines.append(f"base_model: {folder / 'base'}")
    config = folder / f"mergekit-{method}.yaml"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    start = _child([program, "--help"], threads)
    before = free_pages(folder)
    found = _child(
        [program, str(config), str(folder / "out"), "--no-write-model-card", "--no-copy-tokenizer"], threads
    )
    shutil.rmtree(folder / "out")
    return {**found, "start_up": start, "copy_before": before, "load": os.getloadavg()[0]}


def linear_family(method: str, rank: str, count: int | str = 4, size: int | str = 4096) -> Result:
    """Seconds to merge four rank-16 adapters of one module of ``size`` x ``size``.

    "gradient_matching, 64" keeps 64 directions of a Gram, "gradient_matching, separable" has h alone.
    """
    import torch

    from vlora.merge.methods import METHODS

    name, _, kind = method.partition(", ")
    adapters = [_update(seed, int(size), name, kind) for seed in range(int(count))]
    weights = [1.0] * int(count)
    function = METHODS[name].function
    function(
        [_update(9, 64, name, kind if kind == "separable" else "")], [1.0], rank="keep"
    )  # loads libraries
    found = timed(lambda: function(adapters, weights, rank=rank))
    return {**found, "threads": torch.get_num_threads()}


GRAMS = {
    "gradient_matching": ("input_gram", "output_gram"),
    "mats": ("input_gram", "output_gram"),
    "regmean": ("activation_gram",),
}
"""Matrices that a method takes."""


def _update(seed: int, size: int, method: str, kind: str = "") -> Any:
    import torch

    from vlora.merge.update import LoraUpdate

    generator = torch.Generator().manual_seed(seed)
    b, a = (torch.randn(shape, generator=generator).double() for shape in ((size, 16), (16, size)))
    known: dict[str, Any] = {}
    if kind == "separable" or method == "fisher":
        h = [torch.rand(x.shape, generator=generator).double().add_(0.1) for x in (b, a)]
        known = {"precision_b": h[0], "precision_a": h[1], "prior_b": 0.1, "prior_a": 0.1}
    elif method in GRAMS:
        gram = _gram(size, int(kind or 0), generator)
        known = dict.fromkeys(GRAMS[method], gram)
    return LoraUpdate(b, a, 2.0, adapter=f"adapter {seed}", **known)


def _gram(size: int, directions: int, generator: Any) -> Any:
    """Second moment of 256 inputs of different scales, with a little of everything else, as adapters are read."""
    import torch

    from vlora.grams import ShortGram

    inputs = torch.randn(256, size, generator=generator) * torch.linspace(0.2, 2.0, size)
    if not directions:
        return (inputs.T @ inputs / 256).add_(0.05 * torch.eye(size)).double()
    _, values, vh = torch.linalg.svd(inputs / 16, full_matrices=False)
    return ShortGram(vh[:directions].mT.double(), values[:directions].square().double(), 0.05)


def peft_module(kind: str, count: int = 4, size: int = 4096) -> Result:
    """PEFT's ``add_weighted_adapter`` on one linear layer."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = torch.nn.Sequential(torch.nn.Linear(size, size, bias=False))
    settings = LoraConfig(r=16, lora_alpha=32, target_modules=["0"], init_lora_weights=False)
    wrapped = get_peft_model(model, settings, adapter_name="a0")  # type: ignore[arg-type]
    for number in range(1, count):
        wrapped.add_adapter(f"a{number}", settings)
    names = [f"a{number}" for number in range(count)]
    more: dict[str, Any] = {"combination_type": kind, **({"svd_rank": 16} if "svd" in kind else {})}
    return timed(lambda: wrapped.add_weighted_adapter(names, [1.0] * count, "out", **more))


def _child(command: list[str], threads: int) -> Result:
    """Wall, CPU and peak resident memory of a command (file pages that it has mapped count too)."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment.pop("PYTHONPATH", None)
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=sys.stderr)
    peak = [0]
    while process.poll() is None:
        peak[0] = max(peak[0], _status("VmHWM", process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - wall, "cpu": cpu, "memory": peak[0]}


def _status(key: str, process: int | str = "self") -> int:
    """A field of ``/proc/PID/status`` in bytes; 0 when the process is gone."""
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{key}:")), 0)
