"""The largest learning rate at which gradient descent is stable."""


def stable_lr(curvature: float, *, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False) -> float:
    """Return the learning rate below which full-batch gradient descent on a quadratic loss converges.

    Let ``h`` be the largest eigenvalue of the Hessian. Each step multiplies the error along its eigenvector by
    ``1 - lr h``, so it shrinks if ``lr < 2 / h`` (Nocedal & Wright, *Numerical Optimization*, 2nd ed., sec. 3.3). With
    momentum m the error follows a recurrence of second order, whose roots lie inside the unit circle if
    ``lr < 2 (1 + m) / h``, and with Nesterov's gradient if ``lr < 2 (1 + m) / ((1 + 2 m) h)`` (Lessard, Recht &
    Packard, *Analysis and Design of Optimization Algorithms via Integral Quadratic Constraints*, 2016, sec. 2.2).
    Dampening d multiplies the gradient by ``1 - d``.

    Args:
        curvature: h, the largest eigenvalue of the Hessian; the result for 0 is infinity.
        momentum: m, 0 to below 1.
        dampening: d, 0 to below 1; PyTorch ignores it without momentum.
        nesterov: whether the momentum is Nesterov's, which PyTorch allows only without dampening.

    >>> stable_lr(16.7)
    0.11976047904191617
    """
    if curvature <= 0:
        return float("inf")
    bound = 2 * (1 + momentum) / curvature
    return bound / (1 + 2 * momentum) if nesterov else bound / (1 - (dampening if momentum else 0))
