"""The result of the tiny formula: a network with its (r, d, w), exact cost and uncertainty.

Returned by ``suggest_rdw`` and ``TinyFormula.suggest``.
"""

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from search_spaces import Network
from tinynet_search.formula.budget import amount
from tinynet_search.formula.digits import format_rdw
from tinynet_search.formula.gaussian_process import Prediction
from tinynet_search.text import memory_size, millions
from trainables.storage.documents import Json

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Suggestion:
    """A network for a budget.

    It unpacks to the (r, d, w) of the network: ``space.network(RDW(*suggestion))`` is the network.

    Attributes:
        budget: The requested c, a fraction of the baseline's multiply-adds. With limits, the
            largest c that meets them.
        network: The suggested network; r, d, w, c, resolution, macs, params, activations and
            activation_bytes are its exact values.
        predicted: The formula's r(c) and d(c), equation 4.
        extrapolated: Whether c is outside the formula's range. r and d are then those of the
            nearest end, and the standard deviations those at c.
        formula, form: The source of the formula, and the form that was used.
        note: Additional information for the user, or None.
        limits: The requested limits by name (``macs``, ``params``, ``activation_bytes``, ``c``);
            empty if only c was requested.
        binding: The limits that the network of the next larger c exceeds, or ``c``; empty at the
            end of the formula's range.
    """

    budget: float
    network: Network
    predicted: Prediction
    extrapolated: bool
    formula: str
    form: str
    note: str | None = None
    limits: Mapping[str, float] = field(default_factory=dict, hash=False)
    binding: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[float]:
        return iter((self.r, self.d, self.w))

    def __len__(self) -> int:
        return 3

    @property
    def r(self) -> float:
        """Resolution multiplier: whole pixels divided by those of the baseline."""
        return self.network.rdw.r

    @property
    def d(self) -> float:
        """Depth multiplier."""
        return self.network.rdw.d

    @property
    def w(self) -> float:
        """Width multiplier that meets the budget (in place of equation 5)."""
        return self.network.rdw.w

    @property
    def c(self) -> float:
        """Exact multiply-adds divided by those of the baseline."""
        return self.network.c

    @property
    def resolution(self) -> int:
        """Side of the input in pixels."""
        return self.network.resolution

    @property
    def macs(self) -> int:
        """Multiply-adds, the paper's FLOPs."""
        return self.network.macs

    @property
    def params(self) -> int:
        """Parameters, classifier included."""
        return self.network.params

    @property
    def activations(self) -> int:
        """Number of elements written by all convolutions."""
        return self.network.activations

    @property
    def activation_bytes(self) -> int:
        """Peak memory of feature maps in inference at batch 1, in float32.

        An 8-bit runtime needs a quarter.
        """
        return self.network.activation_bytes

    @property
    def space(self) -> str:
        """Name of the search space; the space itself is ``network.space``."""
        return self.network.space.name

    @property
    def r_mean(self) -> float:
        """The formula's r(c), before rounding to pixels."""
        return self.predicted.r_mean

    @property
    def r_std(self) -> float:
        """Standard deviation of r(c), noise included."""
        return self.predicted.r_std

    @property
    def d_mean(self) -> float:
        """The formula's d(c)."""
        return self.predicted.d_mean

    @property
    def d_std(self) -> float:
        """Standard deviation of d(c), noise included."""
        return self.predicted.d_std

    def build(self, **options: Any) -> "torch.nn.Module":
        """Build a newly initialised torch module.

        The options depend on the network family (``drop_rate=.2``, ...).
        """
        return self.network.build(**options)

    def to_dict(self) -> dict[str, Json]:
        """All values as JSON data, with the details of the family such as channels per stage."""
        network = (
            "budget",
            "c",
            "r",
            "d",
            "w",
            "resolution",
            "macs",
            "params",
            "activations",
            "activation_bytes",
        )
        formula = (
            "r_mean",
            "r_std",
            "d_mean",
            "d_std",
            "extrapolated",
            "space",
            "formula",
            "form",
            "note",
        )
        figures = {name: getattr(self, name) for name in network + formula}
        return {
            **figures,
            "limits": dict(self.limits),
            "binding": list(self.binding),
            "num_classes": self.network.num_classes,
            "details": dict(self.network.details),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Label and text of each value, for display."""
        base = self.network.space.baseline_macs(self.network.num_classes)
        deviation = f"{self.c / self.budget - 1:+.1%}"
        return [
            ("r, d, w", ", ".join(format_rdw(self.network))),
            ("resolution", f"{self.resolution} pixels"),
            *((_label(key, value), _text(value)) for key, value in self.network.details.items()),
            ("FLOPs (multiply-adds)", millions(self.macs, grouped=True)),
            (
                "parameters",
                f"{millions(self.params, 2, grouped=True)} "
                f"with {self.network.num_classes:,} classes",
            ),
            (
                "peak activation memory",
                f"{memory_size(self.activation_bytes, grouped=True)} (float32, batch 1)",
            ),
            ("r(c)", f"{self.r_mean:.4f} ± {self.r_std:.4f}"),
            ("d(c)", f"{self.d_mean:.4f} ± {self.d_std:.4f}"),
            (
                "largest c" if self.limits else "budget",
                f"c = {self.budget:g} of {millions(base, grouped=True)}; "
                f"met with {self.c:.4f} ({deviation})",
            ),
            *self._limit_rows(),
            ("formula", f"{self.formula}, {self.form} form"),
            *([("note", self.note)] if self.note else []),
        ]

    def _limit_rows(self) -> list[tuple[str, str]]:
        """The requested limits, and the binding ones with the part of each that is used."""
        if not self.limits:
            return []
        requested = [f"{name} {amount(name, limit)}" for name, limit in self.limits.items()]
        used = [
            f"{name} ({amount(name, getattr(self, name))} of {amount(name, self.limits[name])})"
            for name in self.binding
        ]
        none = "none: every limit is met at the formula's largest c"
        return [("limits", ", ".join(requested)), ("binding", ", ".join(used) or none)]

    def __repr__(self) -> str:
        bound = f", binding {', '.join(self.binding) or 'none'}" if self.limits else ""
        mark = ", extrapolated" if self.extrapolated else ""
        r, d, w = format_rdw(self.network)
        return (
            f"Suggestion({self.space} at c = {self.budget:g}: r={r}, d={d}, w={w}, "
            f"{self.resolution}px, {millions(self.macs, grouped=True)} FLOPs, "
            f"{millions(self.params, 2, grouped=True)} params, "
            f"{memory_size(self.activation_bytes, grouped=True)} peak, c={self.c:.4f}{bound}{mark})"
        )

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(label) for label, _ in rows)
        return "\n".join(
            [
                f"{self.space} at c = {self.budget:g}",
                *(f"  {label:<{width}}  {text}" for label, text in rows),
            ]
        )

    def _repr_html_(self) -> str:
        cell = "text-align:left;padding:.15em .9em .15em 0;border:0"
        body = "".join(
            f'<tr style="background:none">'
            f'<th style="{cell};font-weight:500;opacity:.7">{html.escape(label)}</th>'
            f'<td style="{cell};font-variant-numeric:tabular-nums">{html.escape(text)}</td></tr>'
            for label, text in self.rows()
        )
        title = html.escape(f"{self.space} at c = {self.budget:g}")
        caption = f'<caption style="{cell};font-weight:600;caption-side:top">{title}</caption>'
        style = "border-collapse:collapse;line-height:1.35"
        return f'<table style="{style}">{caption}<tbody>{body}</tbody></table>'


def _label(key: str, value: Any) -> str:
    return f"{key} per stage" if isinstance(value, (list, tuple)) else key


def _text(value: Any) -> str:
    return ", ".join(str(v) for v in value) if isinstance(value, (list, tuple)) else str(value)
