"""What the detector of repeated data costs and how often it is wrong: `python -m ... .repetition`.

The text is the source code that lies in the standard library and in the installed packages, byte by
byte, files in a random order, until the wanted number of tokens that are truly fresh has gone by. A
twin of the sketch that keeps every hash in an exact set says which those are.
"""

from __future__ import annotations

import argparse
import os
import site
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import dynamo_probe as dp
from benchmarks.overhead.interleaved import ratios, seconds
from dynamo_probe.observation.bloom import Bloom
from dynamo_probe.observation.first_seen import Places
from dynamo_probe.observation.sketch import Seen, Sketch
from dynamo_probe.probes.repetition import Repetition

ROWS, LENGTH, NGRAM, MEMORY = 32, 1024, 32, 8 << 20
SUFFIXES = {".py", ".pyi", ".h", ".hpp", ".c", ".cpp", ".cuh", ".md", ".rst", ".txt"}


class ExactSet(Bloom):
    """Stands in for the filter and knows exactly what was put in."""

    def __init__(self) -> None:
        """Begin empty."""
        super().__init__(64)
        self.kept = np.empty(0, dtype=np.uint64)
        self.newest: list[np.ndarray] = []

    def known(self, hashes: np.ndarray) -> np.ndarray:
        """Return which hashes were met."""
        found = np.zeros(len(hashes), dtype=bool)
        newest = np.sort(np.concatenate([np.empty(0, dtype=np.uint64), *self.newest]))
        for kept in (self.kept, newest):
            if len(kept):
                at = np.minimum(np.searchsorted(kept, hashes), len(kept) - 1)
                found |= kept[at] == hashes
        return np.flatnonzero(found)

    def add(self, hashes: np.ndarray) -> None:
        """Put hashes in."""
        self.newest.append(hashes)
        self.inserted += len(hashes)
        if len(self.newest) >= 32:
            self.kept = np.sort(np.concatenate([self.kept, *self.newest]))
            self.newest = []


def text(seed: int = 0) -> Iterator[np.ndarray]:
    """Yield batches [ROWS, LENGTH] of the bytes of all source files at hand, each file once."""
    folders = [sysconfig.get_path("stdlib"), *site.getsitepackages()]
    files = sorted(
        {p for f in folders for p in Path(f).rglob("*") if p.suffix in SUFFIXES and p.is_file()}
    )
    order = np.random.default_rng(seed).permutation(len(files))
    rest, size = b"", ROWS * LENGTH
    for number in order:
        rest += files[number].read_bytes()
        while len(rest) >= size:
            yield np.frombuffer(rest[:size], dtype=np.uint8).reshape(ROWS, LENGTH).astype(np.int64)
            rest = rest[size:]


def noise(seed: int = 0) -> Iterator[np.ndarray]:
    """Yield batches of random tokens: nothing in them is repeated."""
    generator = np.random.default_rng(seed)
    while True:
        yield generator.integers(50_257, size=(ROWS, LENGTH))


def see(sketch: Sketch, tokens: np.ndarray, update: int) -> Seen:
    """Let a sketch see a batch."""
    number = np.arange(len(tokens))
    return sketch.see(tokens, None, Places(np.full(ROWS, update), number, ROWS * update + number))


def repeated(seen: Seen) -> np.ndarray:
    """Return which tokens are repeated."""
    return np.zeros((ROWS, LENGTH), bool) if seen.classes is None else seen.classes > 0


def accuracy(batches: Iterator[np.ndarray], tokens: float, memory: int, *, repeats: bool) -> Sketch:
    """Print false repeats for every tenth of the tokens, and return the sketch as it is then.

    Args:
        batches: the stream.
        tokens: how many truly fresh ones to see.
        memory: bytes of the sketch.
        repeats: whether there are true repeats, so that a twin has to tell them apart.
    """
    sketch, twin = Sketch(memory, NGRAM), Sketch(1 << 16, NGRAM)
    twin.bloom = ExactSet()
    print(
        "| fresh tokens | all tokens | truly repeated | blocks | false, of fresh | of the newest |"
    )
    print("|---|---|---|---|---|---|")
    total = fresh = false = missed = 0
    last = (0, 0)
    for update, batch in enumerate(batches):
        found = repeated(see(sketch, batch, update))
        true = repeated(see(twin, batch, update)) if repeats else np.zeros_like(found)
        total, fresh = total + batch.size, fresh + int((~true).sum())
        false, missed = false + int((found & ~true).sum()), missed + int((true & ~found).sum())
        if fresh >= last[0] + tokens / 10 or fresh >= tokens:
            recent = (false - last[1]) / (fresh - last[0])
            last = (fresh, false)
            print(
                f"| {fresh:.3g} | {total:.3g} | {1 - fresh / total:.3f} | "
                f"{sketch.bloom.inserted:.3g} | {false / fresh:.1e} | {recent:.1e} |",
                flush=True,
            )
        if fresh >= tokens:
            break
    print(f"\nmissed: {missed} tokens. By arithmetic {sketch.false_share():.1e} at the end.")
    print(f"memory: {sketch.nbytes} bytes\n", flush=True)
    return sketch


def cost(full: Sketch, rounds: int) -> None:
    """Print the milliseconds of a batch: fresh, half repeated, all repeated."""
    batches = noise(1)
    old = [next(batches) for _ in range(20)]
    warm = Sketch(MEMORY, NGRAM)
    for update, batch in enumerate(old):
        see(warm, batch, update)
        see(full, batch, update)
    turn = iter(range(10**9))

    def half() -> np.ndarray:
        batch = next(batches)
        batch[:, : LENGTH // 2] = old[next(turn) % 20][:, : LENGTH // 2]
        return batch

    kinds: dict[str, tuple[Sketch, Callable[[], np.ndarray]]] = {
        "fresh, filter nearly empty": (warm, lambda: next(batches)),
        "fresh, filter full": (full, lambda: next(batches)),
        "half repeated": (warm, half),
        "all repeated": (warm, lambda: old[next(turn) % 20]),
    }
    print(f"| {ROWS} x {LENGTH} tokens, ms | one after another | fastest tenth | caches cold |")
    print("|---|---|---|---|")
    update = iter(range(100, 10**9))

    def timed(name: str, batch: np.ndarray) -> float:
        begin = time.thread_time()  # a shared machine takes the processor away at times
        see(kinds[name][0], batch, next(update))
        return 1e3 * (time.thread_time() - begin)

    warm_times: dict[str, list[float]] = {name: [] for name in kinds}
    cold_times: dict[str, list[float]] = {name: [] for name in kinds}
    flush = np.zeros(8 << 20)  # 64 MiB, as a training step leaves nothing of ours in the caches
    for _ in range(rounds // 20):
        for name, (_, draw) in kinds.items():
            drawn = [draw() for _ in range(20)]
            warm_times[name] += [timed(name, batch) for batch in drawn]
            for batch in [draw() for _ in range(4)]:
                flush += 1
                cold_times[name].append(timed(name, batch))
    for name, found in warm_times.items():
        fastest, cold = statistics.quantiles(found, n=10)[0], statistics.median(cold_times[name])
        print(f"| {name} | {statistics.median(found):.2f} | {fastest:.2f} | {cold:.2f} |")
    print(f"load: {os.getloadavg()[0]:.1f}\n", flush=True)


class Model(nn.Module):
    """A model so small that the probe shows."""

    def __init__(self) -> None:
        """Make it."""
        super().__init__()
        self.embed = nn.Embedding(512, 32)
        self.middle, self.out = nn.Linear(32, 32), nn.Linear(32, 512)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return logits [rows, T, 512]."""
        return self.out(torch.relu(self.middle(self.embed(ids))))


def training(rounds: int) -> None:
    """Print the step-time ratio of a small model with the probe, readings every 100 updates."""
    actions: dict[str, Callable[[], object]] = {}
    watches = []
    for name in ("bare", "A/A", "Repetition"):
        torch.manual_seed(0)
        model = Model()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        if name == "Repetition":
            watches.append(dp.watch(model, optimizer, Repetition(every=100)))

        def step(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            for _ in range(4):
                batch = torch.randint(512, (ROWS, LENGTH))
                optimizer.zero_grad()
                logits = model(batch)
                F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten()).backward()
                optimizer.step()

        actions[name] = step
    found = seconds(actions, rounds)
    for watch in watches:
        watch.close()
    bare = 1e3 * statistics.median(found["bare"]) / 4
    shown = ", ".join(f"{name} {ratio:.4f}" for name, ratio in ratios(found, "bare").items())
    print(f"step of a small model, {bare:.1f} ms: {shown}")


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=float, default=1e8)
    parser.add_argument("--memory", type=int, default=MEMORY)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--parts", nargs="+", default=["text", "noise", "cost"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    if "text" in given.parts:
        accuracy(text(), given.tokens, given.memory, repeats=True)
    full = Sketch(given.memory, NGRAM)
    if "noise" in given.parts:
        full = accuracy(noise(), given.tokens, given.memory, repeats=False)
    if "cost" in given.parts:
        if (
            full.bloom.inserted == 0
        ):  # as full as so many fresh tokens make it, without hashing them
            generator = np.random.default_rng(2)
            for _ in range(int(given.tokens / NGRAM / 1e5)):
                full.bloom.add(generator.integers(1 << 64, size=100_000, dtype=np.uint64))
        cost(full, given.rounds)
        training(11)


if __name__ == "__main__":
    main()
