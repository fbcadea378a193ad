"""Trains many models in JAX: vmap of optax's Adam over lax.scan, compiled as one program; writes no file.

It computes in float32 on the CPU, with as many threads as XLA chooses. Usage: ``jax_adam.py <jobs>``.
"""

import json
import sys
import time
from typing import Any

import jax
import optax
from jax import lax
from jax import numpy as jnp
from jobs import STEPS, X, numbers


def train(rate: jax.Array, start: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """Train one model from weight and bias; return its parameters, and its loss at the last step."""
    x = jnp.array(X)[:, None]
    optimizer = optax.adam(rate)
    parameters = {"weight": start[0].reshape(1, 1), "bias": start[1].reshape(1)}

    def loss_of(parameters: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean((x @ parameters["weight"].T + parameters["bias"] - 2 * x) ** 2)

    def step(carried: tuple[Any, Any, jax.Array], _: None) -> tuple[tuple[Any, Any, jax.Array], None]:
        parameters, state, _ = carried
        loss, gradients = jax.value_and_grad(loss_of)(parameters)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(parameters, updates), state, loss), None

    first = (parameters, optimizer.init(parameters), jnp.zeros(()))
    (parameters, _, loss), _ = lax.scan(step, first, length=STEPS)
    return parameters, loss


def main() -> None:
    """Train all models; print the seconds, and the mean of the losses at the last step."""
    rates, starts = map(jnp.asarray, numbers(int(sys.argv[1])))
    started = time.perf_counter()
    compiled = jax.jit(jax.vmap(train, in_axes=(0, 1))).lower(rates, starts).compile()
    ready = time.perf_counter()
    _, losses = jax.block_until_ready(compiled(rates, starts))
    ended = time.perf_counter()
    print(json.dumps({"loss": float(losses.mean()), "compile": ready - started, "run": ended - ready}))


if __name__ == "__main__":
    main()
