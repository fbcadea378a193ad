"""The largest learning rate at which gradient descent is stable."""


def stable_lr(curvature: float, *, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False) -> float:
    """Largest learning rate below which full-batch gradient descent on a quadratic loss converges.

    With ``h`` the largest eigenvalue of the Hessian, each step multiplies the error along it by ``1 - lr h``, so it
    shrinks while ``lr < 2 / h`` (Nocedal & Wright, *Numerical Optimization*, 2nd ed., sec. 3.3). With momentum m the
    error follows a recurrence of second order, whose roots lie within the unit circle while ``lr < 2 (1 + m) / h``, and
    with Nesterov's gradient while ``lr < 2 (1 + m) / ((1 + 2 m) h)`` (Lessard, Recht & Packard, *Analysis and Design of
    Optimization Algorithms via Integral Quadratic Constraints*, 2016, sec. 2.2). Dampening d scales the gradient by
    ``1 - d``.

    Args:
        curvature: h, above 0; infinity is returned for 0.
        momentum: m, 0 to below 1.
        dampening: d, 0 to below 1; PyTorch ignores it without momentum.
        nesterov: Nesterov's momentum, which PyTorch allows only without dampening.

    >>> stable_lr(16.7)
    0.11976047904191617
    """
    if curvature <= 0:
        return float("inf")
    bound = 2 * (1 + momentum) / curvature
    return bound / (1 + 2 * momentum) if nesterov else bound / (1 - (dampening if momentum else 0))
