"""Our DiT beside its peers at equal width, depth, tokens and batch: forward, backward and optimiser step.

    python benchmarks/model_step.py [--device cpu] [--threads 2] [--json FILE]
    python benchmarks/model_step.py --device cuda --compile        about 350 M, 64 x 256 tokens

Models take their steps in turns (A B C A B C), so that what else runs on the machine disturbs all of them alike; ratios
are medians over turns of a model's time over that of diffusers in fp32 in the same turn. The peers are diffusers'
StableAudioDiTModel and the DiffusionTransformer of stable-audio-tools, both as Stable Audio Open has them: no qk-norm,
no adaLN, but a gated MLP, so half as many products again in it. A peer that is not installed is one line that says so:

    pip install diffusers einops; pip install --no-deps --target DIR stable-audio-tools     and --peers DIR

FLOPs of products and attention are counted by torch (torch.utils.flop_counter), and their rate is put beside that of a
large matrix product of the same type on the same device.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from segue.models.dit import DiT, DiTConfig
from segue.provenance import commit, machine
from segue.training.compiling import compile_blocks
from segue.types import Condition

REFERENCE = ("diffusers", "fp32")


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# torch counts the attention of GPUs alone; it calls these with shapes.
OF_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """What all models have in common."""

    width: int = 384
    depth: int = 7
    heads: int = 6
    batch: int = 4
    tokens: int = 216
    text_tokens: int = 64
    text_dim: int = 384
    channels: int = 64


SHAPES = {"cpu": Shape(), "cuda": Shape(width=1152, depth=18, heads=18, batch=64, tokens=256, text_dim=768)}
Forward = Callable[[], Tensor]


class Inputs:
    """Random inputs; captions of different lengths, as in training."""

    def __init__(self, shape: Shape, device: str) -> None:
        torch.manual_seed(0)
        kept = torch.linspace(0.25, 1.0, shape.batch)[:, None] * shape.text_tokens
        self.x = torch.randn(shape.batch, shape.channels, shape.tokens, device=device)
        self.t = torch.rand(shape.batch, device=device)
        self.text = torch.randn(shape.batch, shape.text_tokens, shape.text_dim, device=device)
        self.mask = (torch.arange(shape.text_tokens)[None] < kept).to(device)
        self.summary = torch.randn(shape.batch, shape.text_dim, device=device)


def ours(shape: Shape, inputs: Inputs) -> tuple[nn.Module, Forward]:
    """The DiT of segue."""
    config = DiTConfig(shape.channels, shape.text_dim, shape.width, shape.depth, shape.heads, adaln_rank=32)
    model = DiT(config)
    drop = torch.zeros(shape.batch, dtype=torch.bool, device=inputs.x.device)
    condition = Condition(inputs.text, inputs.mask, drop)
    return model, lambda: model(inputs.x, inputs.t, condition).prediction


def of_diffusers(shape: Shape, inputs: Inputs) -> tuple[nn.Module, Forward]:
    """StableAudioDiTModel; its rotary table is made once, as its pipeline makes it."""
    diffusers = importlib.import_module("diffusers")
    embeddings = importlib.import_module("diffusers.models.embeddings")
    head = shape.width // shape.heads
    model = diffusers.StableAudioDiTModel(
        sample_size=shape.tokens, in_channels=shape.channels, out_channels=shape.channels, num_layers=shape.depth,
        attention_head_dim=head, num_attention_heads=shape.heads, num_key_value_attention_heads=shape.heads,
        cross_attention_dim=shape.width, global_states_input_dim=shape.text_dim,
        cross_attention_input_dim=shape.text_dim,
    )  # fmt: skip
    tables = embeddings.get_1d_rotary_pos_embed(
        head // 2, shape.tokens + 1, use_real=True, repeat_interleave_real=False
    )
    rotary = tuple(table.to(inputs.x.device) for table in tables)

    def forward() -> Tensor:
        summary = inputs.summary[:, None]
        masks = {"encoder_attention_mask": inputs.mask}
        return model(inputs.x, inputs.t, inputs.text, summary, rotary, return_dict=False, **masks)[0]

    return model, forward


def of_stable_audio_tools(shape: Shape, inputs: Inputs) -> tuple[nn.Module, Forward]:
    """DiffusionTransformer."""
    # Its packages import trainers, codecs and data sets. Of these nothing is wanted: two folders stand in for them.
    for name in ("stable_audio_tools", "stable_audio_tools.models"):
        package = types.ModuleType(name)
        package.__path__ = [str(_folder_of_stable_audio_tools() / name.partition(".")[2])]
        sys.modules[name] = package
    model = importlib.import_module("stable_audio_tools.models.dit").DiffusionTransformer(
        io_channels=shape.channels, embed_dim=shape.width, depth=shape.depth, num_heads=shape.heads,
        cond_token_dim=shape.text_dim, global_cond_dim=shape.text_dim,
    )  # fmt: skip
    options = {"cross_attn_cond": inputs.text, "cross_attn_cond_mask": inputs.mask, "global_embed": inputs.summary}
    return model, lambda: model(inputs.x, inputs.t, **options)


def _folder_of_stable_audio_tools() -> Path:
    for folder in map(Path, sys.path):
        if (folder / "stable_audio_tools" / "models" / "dit.py").is_file():
            return folder / "stable_audio_tools"
    raise ModuleNotFoundError("no module named 'stable_audio_tools'")


MODELS = {"segue": ours, "diffusers": of_diffusers, "stable-audio-tools": of_stable_audio_tools}


class Stepper:
    """A model that takes steps on one batch."""

    def __init__(self, model: nn.Module, forward: Forward, device: str, clock: Callable[[], float]) -> None:
        self.model = model.to(device).train()
        self._forward = forward
        self._device = device
        self._clock = clock
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(self, precision: str) -> None:
        """Forward, backward, optimiser."""
        with torch.autocast(self._device.partition(":")[0], torch.bfloat16, enabled=precision == "bf16"):
            loss = self._forward().float().square().mean()
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def seconds(self, precision: str, steps: int) -> float:
        """Of one step, the mean of so many."""
        wait(self._device)
        started = self._clock()
        for _ in range(steps):
            self.step(precision)
        wait(self._device)
        return (self._clock() - started) / steps

    def flops(self, precision: str) -> int:
        """Counted floating-point operations of a step's products and attention, forward and backward."""
        with FlopCounterMode(display=False, custom_mapping=OF_CPU) as counter:
            self.step(precision)
        return counter.get_total_flops()


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def product_rate(device: str, precision: str, clock: Callable[[], float]) -> float:
    """FLOP a second of a large matrix product, the best of several."""
    size = 8192 if device.startswith("cuda") else 2048
    a, b = (torch.randn(size, size, device=device, dtype=TYPES[precision]) for _ in range(2))
    taken = []
    for _ in range(8):
        wait(device)
        started = clock()
        a @ b
        wait(device)
        taken.append(clock() - started)
    return 2 * size**3 / min(taken)


def make(shape: Shape, device: str, compiled: bool, clock: Callable[[], float]) -> dict[str, Stepper]:
    """Name -> model; what cannot be imported is named on standard error."""
    inputs = Inputs(shape, device)
    made = {}
    for name, maker in MODELS.items():
        try:
            model, forward = maker(shape, inputs)
        except ImportError as error:
            print(f"{name}: not measured ({error})", file=sys.stderr)
            continue
        if compiled and name == "segue":
            compile_blocks(model.blocks)
        made[name] = Stepper(model, forward, device, clock)
    return made


def measure(made: dict[str, Stepper], precisions: list[str], turns: int, steps: int) -> dict[tuple[str, str], list]:
    """(Model, precision) -> seconds a step in each turn."""
    seconds: dict[tuple[str, str], list] = {(name, precision): [] for precision in precisions for name in made}
    for name, precision in seconds:
        made[name].seconds(precision, 2)  # warm
    for _ in range(turns):
        for name, precision in seconds:
            seconds[name, precision].append(made[name].seconds(precision, steps))
    return seconds


def report(shape: Shape, device: str, asked: argparse.Namespace) -> dict:
    """Figures as rows of a table (benchmarks/bench.py), and where they come from."""
    clock = time.process_time if asked.cpu_time else time.perf_counter
    made = make(shape, device, asked.compile, clock)
    precisions = asked.precision.split(",")
    # Products first: all of them on a machine in the same state.
    rates = {precision: product_rate(device, precision, clock) for precision in precisions}
    seconds = measure(made, precisions, asked.turns, asked.steps)
    rows = []
    for (name, precision), taken in seconds.items():
        stepper = made[name]
        millions = sum(p.numel() for p in stepper.model.parameters()) / 1e6
        flops = stepper.flops(precision) if not (asked.compile and name == "segue") else None
        middle = statistics.median(taken)
        what = f"{name}, {precision}"
        note = f"{millions:.1f} M; median of {len(taken)}, {min(taken):.3g} to {max(taken):.3g} s"
        rows.append({"what": what, "value": 1e3 * middle, "unit": "ms", "note": note})
        if REFERENCE in seconds and (name, precision) != REFERENCE:
            ratios = [a / b for a, b in zip(taken, seconds[REFERENCE])]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            rows.append(
                {"what": f"{what}, over diffusers fp32", "value": statistics.median(ratios), "unit": "", "note": spread}
            )
        if flops is not None:
            share = 100 * flops / middle / rates[precision]
            note = f"{flops / 1e9:.0f} GFLOP a step; the product: {rates[precision] / 1e9:,.0f} GFLOP/s"
            rows.append({"what": f"{what}, of the rate of a matrix product", "value": share, "unit": "%", "note": note})
    device_name = torch.cuda.get_device_name() if device.startswith("cuda") else machine()
    return {
        "commit": commit(),
        "machine": device_name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "shape": vars(shape),
        "compiled": asked.compile,
        "cpu_time": asked.cpu_time,
        "seconds": {", ".join(key): taken for key, taken in seconds.items()},
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument(
        "--cpu-time", action="store_true", help="time of the processor, with --threads 1 on a busy machine"
    )
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--compile", action="store_true", help="our blocks by torch.compile")
    parser.add_argument("--quick", action="store_true", help="a trial of the script: one turn of a small model")
    parser.add_argument("--peers", default="", help="folder in which stable-audio-tools is installed")
    parser.add_argument("--json", type=Path, help="write all figures here")
    for name, value in vars(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{value} on a CPU")
    asked = parser.parse_args()
    if asked.peers:
        sys.path.append(asked.peers)
    torch.set_num_threads(asked.threads)
    kind = asked.device.partition(":")[0]
    changes = {k: v for k in vars(Shape()) if (v := getattr(asked, k)) is not None}
    if asked.quick:
        asked.turns = asked.steps = 1
        changes = {"width": 128, "depth": 2, "heads": 2, "tokens": 32, **changes}
    found = report(replace(SHAPES[kind], **changes), asked.device, asked)
    for row in found["rows"]:
        print(f"{row['what']:58} {row['value']:10.3g} {row['unit']:3} {row['note']}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
