"""Kill a study at random moments, again and again, and see what is left of it.

    python tests/study/killing.py FOLDER --kills 20 --processes 1 2

A process opens the embedded model once and forks: each child runs the study, and is killed with SIGKILL after
a random time, until one gets to the end. What the folder then holds has to be what a study gives that nobody
killed. Forks spare the loading, so that most kills hit the study itself: its answers, journals and seals.
"""

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import seeing
from seeing.study import running

METHODS = "base,random_region"
DATA = "plates:80"


def child(vlm, folder: Path) -> int:
    """Start the study in a process of its own."""
    started = os.fork()
    if started:
        return started
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        study(vlm, folder)
    except BaseException as error:  # noqa: BLE001 (a fork must end here, whatever happened)
        print(f"child: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def study(vlm, folder: Path):
    return running.run(vlm, DATA, METHODS, folder, calibration="plates:calibration:16", rows=8, seed=3)


def killed(vlm, folder: Path, kills: int, processes: int, rng: random.Random, longest: float) -> int:
    """Run the study to its end through so many kills at least; how many there were."""
    done = 0
    running_now = {child(vlm, folder): time.monotonic() + rng.uniform(0, longest) for _ in range(processes)}
    while running_now:
        for pid, until in list(running_now.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running_now[pid]
                if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                    raise SystemExit("a study that goes on ended with an error")
            elif done < kills and time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                done += 1
                del running_now[pid]
                running_now[child(vlm, folder)] = time.monotonic() + rng.uniform(0, longest)
        time.sleep(0.002)
    return done


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("folder", type=Path)
    asked.add_argument("--kills", type=int, default=10)
    asked.add_argument("--processes", type=int, nargs="+", default=[1])
    asked.add_argument("--seed", type=int, default=0)
    given = asked.parse_args()
    torch.set_num_threads(1)
    vlm = seeing.load("plates-tiny", check=False)
    began = time.monotonic()
    study(vlm, given.folder / "undisturbed")
    whole = time.monotonic() - began
    rng = random.Random(given.seed)
    for processes in given.processes:
        count = number = 0
        # A study that is killed gets on, so after some kills it is at its end, and the next one begins.
        while count < given.kills:
            folder = given.folder / f"killed-{processes}-{number}"
            # Within less than the whole takes: some before it has begun, some in its midst, some at a seal.
            count += killed(vlm, folder, given.kills - count, processes, rng, whole * 0.5)
            number += 1
        print(f"{processes} processes, killed {count} times in {number} studies", flush=True)


if __name__ == "__main__":
    main()
