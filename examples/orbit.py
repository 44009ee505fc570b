"""Aim a probe: gradients through a simulation of an orbit, in reverse and in forward mode."""

import numpy as np

import staticgrad as sg


def fly(velocity, steps: int):
    """Where a probe is after `steps` of leapfrog around a star at the origin, starting at (1, 0)."""
    position = sg.asarray([1.0, 0.0], dtype=np.float64)
    dt = 0.02
    for _ in range(steps):
        pull = -position / sg.norm(position) ** 3
        velocity = velocity + dt * pull
        position = position + dt * velocity
    return position


def main(steps: int = 60, corrections: int = 12) -> float:
    """The distance to the target after Gauss-Newton corrections of the first velocity."""
    target = np.array([0.2, 0.9])

    def miss(velocity):
        return sg.sum(sg.square(fly(velocity, steps) - target))

    gradient = sg.compile(sg.value_and_grad(miss))
    arrive = sg.compile(lambda velocity, direction: sg.jvp(lambda v: fly(v, steps), (velocity,), (direction,)))
    velocity = np.array([0.0, 1.0])
    for _ in range(corrections):
        columns = [np.asarray(arrive(velocity, axis)[1]) for axis in np.eye(2)]
        error = np.asarray(arrive(velocity, np.zeros(2))[0]) - target
        velocity = velocity - np.linalg.solve(np.stack(columns, axis=1), error)
    value, slope = gradient(velocity)
    print(f"missed by {np.sqrt(value.item()):.2e} with velocity {velocity}, slope {np.asarray(slope)}")
    return float(np.sqrt(value.item()))


if __name__ == "__main__":
    main()
