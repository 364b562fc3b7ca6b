"""Data-parallel training: several processes train one model, each on its part of every batch.

Learns atoms from whitened patches of photographs. With the extra 'accelerate' installed, on a
machine with two GPUs or only a CPU:

    accelerate launch --multi_gpu --num_processes 2 examples/train_data_parallel.py

Without a GPU, the name of `--multi_gpu` is misleading: it starts the processes, which then
communicate through gloo. The batches are the same for any number of processes, and so are the
gradients, up to rounding: `python examples/train_data_parallel.py` trains the same model in one
process.
"""

import argparse
import sys
import time

import torch
from accelerate import PartialState

from sklearn_vsc import ThresholdedVSC
from sklearn_vsc.datasets import load_natural_patches


def main(n_samples, max_iter, output):
    """Fit in all processes; the first one reports the result."""
    state = PartialState(cpu=not torch.cuda.is_available())
    X = load_natural_patches(n_samples, subset="train", random_state=0)
    model = ThresholdedVSC(
        64,
        batch_size=256,
        max_iter=max_iter,
        random_state=0,
        device="accelerate",
        verbose=sys.stderr.isatty(),
    )
    start = time.perf_counter()
    model.fit(X)
    duration = time.perf_counter() - start
    if state.is_main_process:
        print(
            f"{state.num_processes} processes on {state.device.type}: {duration:.1f} s, "
            f"score {model.score(X[:1000]):.2f} nats per row"
        )
        if output is not None:
            # With this device, the model can be used in a single process on any machine.
            model.set_params(device="auto").save(output)
    state.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-samples", type=int, default=20_000)
    parser.add_argument("--max-iter", type=int, default=10)
    parser.add_argument("--output", help="folder to save the model in")
    args = parser.parse_args()
    main(args.n_samples, args.max_iter, args.output)
