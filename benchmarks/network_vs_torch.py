#!/usr/bin/env python
"""Time of the forward and backward pass of `npg.network.MLP` and of PyTorch on the CPU: float32, one thread each.

    python benchmarks/network_vs_torch.py

Both compute the gradient of Σ dy·y with respect to the parameters, not to the input. First the script checks that both
give the same results.
"""

import argparse

from timing import interleaved, machine, needs, with_spread  # isort: skip  # before NumPy: it sets the number of threads

if __name__ == "__main__":
    needs("torch")

import numpy as np
import torch

from npg.network import MLP
from npg.runner.figures import at_least

SMALL, LARGE = (1, 8, 64, 256), (1, 32, 512, 2048)
SHAPES = {(4, 64, 2): SMALL, (4, 64, 64, 2): SMALL, (6400, 200, 1): LARGE}
ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}


def both(sizes, activation, batch, seed=0):
    """(network, npg's function, torch's function). Both functions are () → (y, gradient), with equal parameters."""
    rng = np.random.default_rng(seed)
    network = MLP(sizes, activation)
    theta = network.init(rng)
    x, dy = (rng.standard_normal((batch, n), np.float32) for n in (network.n_in, network.n_out))

    layers = []
    for W, b in network.layers(theta):
        linear = torch.nn.Linear(*W.shape)
        linear.weight.data[...], linear.bias.data[...] = torch.from_numpy(W.T.copy()), torch.from_numpy(b.copy())
        layers += [linear, ACTIVATIONS[activation]()]
    module, x_torch, dy_torch = torch.nn.Sequential(*layers[:-1]), torch.from_numpy(x), torch.from_numpy(dy)

    def with_npg():
        y, cache = network.forward(theta, x)
        return y, network.backward(theta, cache, dy, want_dx=False)[0]

    def with_torch():
        module.zero_grad(set_to_none=True)
        y = module(x_torch)
        (y * dy_torch).sum().backward()
        return y, [p.grad for p in module.parameters()]

    return network, with_npg, with_torch


def largest_difference(network, with_npg, with_torch):
    """The largest relative difference between npg and torch, in y and in the gradient of each parameter array."""
    (y, dtheta), (y_torch, gradients) = with_npg(), with_torch()
    ours = [y, *(d for layer in network.layers(dtheta) for d in layer)]
    theirs = [y_torch.detach().numpy(), *(g.numpy().T for g in gradients)]
    return max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(ours, theirs, strict=True))


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=at_least(1), default=21, help="measurements per program, in turns (21)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine("numpy", "torch"), "\n")
    print("| network | activation | batch | npg µs | torch µs | torch / npg (quartiles) | difference |")
    print("|---|---|---|---|---|---|---|")
    for sizes, batches in SHAPES.items():
        for activation in ACTIVATIONS:
            for batch in batches:
                network, with_npg, with_torch = both(sizes, activation, batch)
                difference = largest_difference(network, with_npg, with_torch)
                if difference > 1e-5:
                    raise SystemExit(f"{sizes} {activation} {batch}: results differ by {difference:.1e}")
                ours, theirs = interleaved(with_npg, with_torch, args.rounds)
                print(
                    f"| {'–'.join(map(str, sizes))} | {activation} | {batch} | {1e6 * np.median(ours):.0f} "
                    f"| {1e6 * np.median(theirs):.0f} | {with_spread(theirs / ours, '{:.2f}')} | {difference:.0e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
