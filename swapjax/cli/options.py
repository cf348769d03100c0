"""The options that the commands have in common."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import optax
import tyro

from swapjax.cli.console import console, progress
from swapjax.cli.methods import METHODS, MethodName
from swapjax.core.types import Params
from swapjax.experiments import datasets, models, runner
from swapjax.experiments.runner import Setting
from swapjax.gradients.noise import GradientNoise
from swapjax.io import checkpoint as files
from swapjax.loops.finetune import FineTune
from swapjax.pruning import Method
from swapjax.sparsity import schedules
from swapjax.sparsity.patterns import NM
from swapjax.sparsity.plan import Plan, plan

_SPARSITY = 0.9


def shown(metavar: str, default: str | None = None) -> Any:
    """How --help names a value, and what it says of the default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=default)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, and the data that it is for."""

    data: Annotated[str, shown("digits|PATH|tfds:NAME")] = "digits"
    """scikit-learn's digits, an .npz (x_train, y_train, x_test, y_test), or tfds."""
    data_dir: Annotated[Path | None, shown("DIR", "")] = None
    """Where tensorflow-datasets keeps its files."""
    model: Literal["mlpnet", "lenet300", "cnn"] = "mlpnet"
    """mlpnet: the paper's, 40 and 20 hidden units. lenet300: 300 and 100. cnn: two
    convolutions, two dense."""
    seed: int = 0
    """Of all that is random; the same seed gives the same result."""

    def load(self) -> tuple[datasets.Dataset, models.Model]:
        """The data, and the network with its initial weights.

        Raises:
            ValueError: for what cannot be loaded or does not go together.
        """
        data = datasets.load(self.data, data_dir=self.data_dir)
        return data, models.create(self.model, data.shape, data.classes, seed=self.seed)

    def require_counts(self, *names: str) -> None:
        """Raise for options that count something, and are not 1 or more.

        Raises:
            ValueError: naming the option.
        """
        for name in names:
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise ValueError(
                    f"--{option} must be 1 or more, got {getattr(self, name)}"
                )


@dataclasses.dataclass(frozen=True)
class Options(Network):
    """What to prune, and how."""

    checkpoint: Annotated[Path | None, shown("PATH", "(default: train first)")] = None
    """Trained weights, .safetensors or .npz, PyTorch's names and layouts included."""
    epochs: int = 60
    """Passes over the training set, if the network is trained first."""
    method: MethodName = "swap"
    """How to choose and re-fit; the README has a table of all ten."""
    sparsity: float = _SPARSITY
    """The fraction of prunable weights to remove."""
    pattern: Annotated[str | None, shown("N:M", "(default: any entries)")] = None
    """Keep N of every M weights along the inputs, as 2:4; it implies the sparsity."""
    exclude: Annotated[str | None, shown("REGEX", "(default: nothing)")] = None
    """Leave weights whose path matches alone."""
    stages: int = 10
    """Rounds of gradients, support and re-fit on the way there."""
    schedule: Literal["exponential", "cubic", "linear", "one-shot"] = "exponential"
    """How sparsity climbs over the stages."""
    allocation: Literal["global", "uniform", "erk"] = "global"
    """How the weights to keep are spread over layers."""
    samples: int = 1000
    """Gradient rows a stage."""
    batch: int = 1
    """Training examples averaged into a row: 16 sees 16 times the data."""
    noise: Annotated[
        tuple[float, float] | None, shown("SCALE PROPORTION", "(default: none)")
    ] = None
    """Add noise of SCALE standard deviations to this PROPORTION of each gradient."""
    target: Literal["hybrid", "smoothed", "debiased", "exact"] = "hybrid"
    """The variant of swap; hybrid is half regression, half transport."""
    epsilon: Annotated[float | None, shown("E", "(default: 0)")] = None
    """Entropic regularisation, squared units of projections; 0 sorts, inf averages."""
    perplexity: Annotated[float | None, shown("N", "")] = None
    """Choose epsilon so that an example has this many neighbours on average."""
    damping: Annotated[float | None, shown("L", "(default: whichever of several)")] = (
        None
    )
    """The ridge that holds weights where they were; more for noisier gradients."""
    block: Annotated[int | None, shown("C", "(default: the method's)")] = None
    """Entries of a diagonal block of the Fisher in woodfisher, cbs and chita."""
    first_order: bool = True
    """swap, linear-regression: follow the mean gradient too, as far as it holds up."""
    finetune_steps: int = 0
    """Adam steps after each stage."""
    finetune_rate: float = 1e-3
    """The learning rate of those steps."""
    finetune_batch: int = 64
    """Examples in each of those steps."""
    storage: Literal["auto", "stored", "matrix-free"] = "auto"
    """Keep the gradient rows in memory, or recompute them in every product."""

    def make_method(self, name: MethodName) -> Method:
        """Make a method with the options that concern it."""
        return METHODS[name](self)

    def levels(self, sparsities: Sequence[float]) -> list[float]:
        """The sparsities asked for, or the one that the pattern implies.

        Raises:
            ValueError: for others than that.
        """
        if self.pattern is None:
            return list(sparsities)
        pattern = NM.parse(self.pattern)
        implied = 1 - pattern.n / pattern.m
        if set(sparsities) - {_SPARSITY, implied}:
            raise ValueError(
                f"--pattern {self.pattern} removes {implied:g}; leave the sparsity out"
            )
        return [implied]

    def plan(self, params: Params, sparsity: float) -> Plan:
        """What to prune of params.

        Raises:
            ValueError: as `swapjax.plan` does.
        """
        return plan(
            params,
            None if self.pattern else sparsity,
            pattern=None if self.pattern is None else NM.parse(self.pattern),
            allocation=self.allocation,
            exclude=self.exclude or (),
        )

    @property
    def run_options(self) -> dict[str, Any]:
        """What `experiments.run` takes besides method, sparsity and seed."""
        tune = None
        if self.finetune_steps:
            tune = FineTune(
                _adam(self.finetune_rate), self.finetune_steps, self.finetune_batch
            )
        schedule = {
            "exponential": schedules.exponential(initial=0.1),
            "cubic": schedules.cubic(initial=0.1),
            "linear": schedules.linear(initial=0.1),
            "one-shot": schedules.one_shot(),
        }[self.schedule]
        return {
            "noise": self.noise,
            "stages": self.stages,
            "samples": self.samples,
            "batch": self.batch,
            "schedule": schedule,
            "finetune": tune,
            "storage": self.storage,
        }

    def check(self) -> None:
        """Find bad values before anything is loaded or trained.

        Raises:
            ValueError: naming the option.
        """
        self.require_counts("epochs", "stages", "samples", "batch", "finetune_batch")
        if self.finetune_steps < 0:
            raise ValueError(
                f"--finetune-steps must be 0 or more, got {self.finetune_steps}"
            )
        if not self.finetune_rate > 0:
            raise ValueError(
                f"--finetune-rate must be positive, got {self.finetune_rate}"
            )
        check_seed(self.seed, "--seed")
        if self.noise is not None:
            GradientNoise(*self.noise)
        for name in METHODS:  # an option may be bad for a method not asked for
            self.make_method(name)

    def set_up(
        self, sparsities: Sequence[float], trained: Path | None = None
    ) -> Setting:
        """Load data and weights, or train.

        Args:
            sparsities: that will be asked of the network.
            trained: where an earlier call may have left the weights it trained.

        Raises:
            ValueError: for what cannot be loaded or does not go together, before any
                training starts.
        """
        data, model = self.load()
        for sparsity in sparsities:
            self.plan(model.params, sparsity)
        wanted, available = self.samples * self.batch, len(data.y_train)
        if wanted > available:
            raise ValueError(
                f"--samples {self.samples} times --batch {self.batch} are {wanted:,} "
                f"examples a stage; {data.name} has {available:,} to train"
            )
        if self.checkpoint is not None:
            return runner.set_up(data, model, weights=self.checkpoint)
        if trained is not None and self._is_ours(trained):
            console.print(
                f"Taking the network trained before from {trained}.", soft_wrap=True
            )
            return runner.set_up(data, model, weights=trained)
        console.print(
            f"No --checkpoint given: training {self.model} on {data.name} for "
            f"{self.epochs} epochs."
        )
        with progress("training", self.epochs) as (bar, task):
            return runner.set_up(
                data,
                model,
                epochs=self.epochs,
                seed=self.seed,
                callback=lambda done, of: bar.update(
                    task, completed=self.epochs * done / of
                ),
            )

    def save_trained(self, path: Path, setting: Setting) -> None:
        """Keep the weights that `set_up` trained, and what they were trained with."""
        files.save_params(path, setting.params, self._training)

    @property
    def _training(self) -> dict[str, str]:
        names = ("data", "data_dir", "model", "epochs", "seed")
        return {name: str(getattr(self, name)) for name in names}

    def _is_ours(self, path: Path) -> bool:
        return path.exists() and files.read(path)[1] == self._training


@functools.cache
def _adam(rate: float) -> optax.GradientTransformation:
    """One object a rate, so that runs share the compiled steps."""
    return optax.adam(rate)


def check_seed(seed: int, name: str) -> None:
    """Find seeds that JAX would not tell apart.

    Raises:
        ValueError: naming the option.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"{name} must be from 0 to {2**32 - 1}, got {seed}")
