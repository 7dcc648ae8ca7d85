"""How often our 95% intervals hold the truth, on Gaussians whose truth is known or can be had from many pictures.

    python -m tests.interval_coverage [--trials 200]

Every trial draws two new sets (120 and 100 pictures of 8 features, then of 64) and takes each figure with its interval.
Two truths: of the *population* (infinitely many pictures: closed forms for KID and the Frechet distance), and the
*expectation* of the figure at this number of pictures (its mean over all trials), which is what an interval can hope to
hold where the figure is biased. `error` is the mean standard error of the intervals over the spread of the values: 1
is right, below 1 they are too short. Precision, recall, density and coverage have no other truth than their
expectation: their balls depend on the number of pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from stages.metrics.frechet_distance import frechet, frechet_to_reference
from stages.metrics.inception_score import inception_score
from stages.metrics.kernel_distance import kid
from stages.metrics.moments import Moments
from stages.metrics.neighbours import overlap
from stages.metrics.picture_set import PictureSet
from stages.metrics.weighting import Estimate, Weighting, bootstrap_mean, bootstrap_share

PICTURES, REFERENCE, SHIFT, SCALE = 120, 100, 0.3, 1.2
SIZES = (8, 64)
ROUNDS_SEED = 0
CLASSES = 10


@dataclass
class Tally:
    """What one figure came out as, trial by trial."""

    population: float | None
    estimates: list[Estimate] = field(default_factory=list)

    def line(self) -> str:
        """Bias, spread, and the shares of intervals that hold either truth."""
        values = np.array([it.value for it in self.estimates])
        low, high = np.array([it.interval for it in self.estimates]).T
        errors = np.array([it.error for it in self.estimates])
        at_expectation = ((low <= values.mean()) & (values.mean() <= high)).mean()
        ratio = np.sqrt((errors**2).mean()) / values.std(ddof=1)
        cells = f"{values.mean():>11.4f}{values.std(ddof=1):>10.4f}{ratio:>8.2f}{at_expectation:>13.1%}"
        if self.population is None:
            return f"{'-':>12}{cells}{'-':>12}"
        held = ((low <= self.population) & (self.population <= high)).mean()
        return f"{self.population:>12.4f}{cells}{held:>12.1%}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    trials = parser.parse_args().trials
    print(f"{'':34}{'population':>12}{'mean':>11}{'spread':>10}{'error':>8}{'holds mean':>13}{'holds pop.':>12}")
    for size in SIZES:
        for name, tally in cover(size, trials).items():
            print(f"{name + f', {size} features':34}{tally.line()}")


def cover(size: int, trials: int) -> dict[str, Tally]:
    """All figures of so many trials."""
    tallies = {name: Tally(truth) for name, truth in truths(size).items()}
    for trial in range(trials):
        for name, estimate in estimates(size, trial).items():
            tallies.setdefault(name, Tally(None)).estimates.append(estimate)
    return tallies


def truths(size: int) -> dict[str, float]:
    """Closed forms for x ~ N(SHIFT, SCALE^2 I), y ~ N(0, I)."""
    distance = size * (SHIFT**2 + (SCALE - 1) ** 2)

    def kernel(first: tuple[float, float], second: tuple[float, float]) -> float:
        # E (u.v / D + 1)^3 by the moments of u.v, a sum of D independent products.
        (m, s), (n, t) = first, second
        one = m * n
        two = (m**2 + s**2) * (n**2 + t**2)
        three = (m**3 + 3 * m * s**2) * (n**3 + 3 * n * t**2)
        mean = size * one
        square = size * two + size * (size - 1) * one**2
        cube = size * three + 3 * size * (size - 1) * two * one + size * (size - 1) * (size - 2) * one**3
        return cube / size**3 + 3 * square / size**2 + 3 * mean / size + 1

    x, y = (SHIFT, SCALE), (0.0, 1.0)
    squared = kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
    return {"KID": squared, "Frechet": distance, "Frechet to statistics": distance}


def estimates(size: int, trial: int) -> Mapping[str, Estimate]:
    """Every figure of one trial."""
    rng = np.random.default_rng([size, trial])
    x_ND, y_MD = rng.normal(SHIFT, SCALE, (PICTURES, size)), rng.normal(0, 1, (REFERENCE, size))
    x, y, found = PictureSet.plain(x_ND), PictureSet.plain(y_MD), overlap(x_ND, y_MD)
    plain_N, plain_M = Weighting.plain(PICTURES), Weighting.plain(REFERENCE)

    def share(values: np.ndarray, weighting: Weighting) -> Estimate:
        return bootstrap_share(lambda weight: float(weight @ values), weighting, seed=ROUNDS_SEED)

    exact = Moments.of_gaussian(np.zeros(size), np.eye(size))
    makers: dict[str, Callable[[], Estimate]] = {
        "KID": lambda: kid(x, y),
        "Frechet": lambda: frechet(x, y),
        "Frechet to statistics": lambda: frechet_to_reference(x, exact),
        "precision": lambda: share(found.inside_N, plain_N),
        "recall": lambda: share(found.reached_M, plain_M),
        "density": lambda: bootstrap_mean(found.density_N, plain_N, seed=ROUNDS_SEED),
        "coverage": lambda: share(found.covered_M, plain_M),
        "Inception score": lambda: inception_score(2 * x_ND[:, :CLASSES]),
        "a mean (PSNR, bits, ...)": lambda: bootstrap_mean(x_ND[:, 0], plain_N, seed=ROUNDS_SEED),
    }
    return {name: make() for name, make in makers.items()}


if __name__ == "__main__":
    main()
