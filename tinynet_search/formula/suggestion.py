"""What the tiny formula answers: (r, d, w) of a real network, its exact cost, and how far the formula can be trusted."""

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from search_spaces import Network
from tinynet_search.formula.budget import amount
from tinynet_search.formula.digits import spelled
from tinynet_search.formula.gaussian_process import Prediction
from tinynet_search.text import memory_size, millions
from trainables.storage.documents import Json

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Suggestion:
    """A network for a budget; unpacks to the (r, d, w) of the network itself: ``space.network(RDW(*suggestion))`` is it.

    Attributes:
        budget: c that was asked for, a fraction of the baseline's multiply-adds; under limits the largest that meets them.
        network: the suggested network; r, d, w, c, resolution, macs, params, activations and activation_bytes are its own.
        predicted: the formula's r(c) and d(c), equation 4.
        extrapolated: c lies outside the formula's range; r and d are those of the nearest end, the stds those at c.
        formula, form: the formula's source and which of its two forms answered.
        note: what the reader should know besides; None where there is nothing.
        limits: what was asked by name (``macs``, ``params``, ``activation_bytes``, ``c``); empty where c alone was.
        binding: the limits that the network of the next larger c breaks, or ``c``; none at the formula's own end.
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
        """Resolution multiplier: whole pixels over the baseline's."""
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
        """Exact multiply-adds over the baseline's."""
        return self.network.c

    @property
    def resolution(self) -> int:
        """Input side, pixels."""
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
        """Elements written by all convolutions."""
        return self.network.activations

    @property
    def activation_bytes(self) -> int:
        """Peak memory of feature maps in inference at batch 1, float32; an 8-bit runtime needs a quarter."""
        return self.network.activation_bytes

    @property
    def space(self) -> str:
        """Name of the search space; the space itself is ``network.space``."""
        return self.network.space.name

    @property
    def r_mean(self) -> float:
        """The formula's r(c), before it is rounded to pixels."""
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
        """The torch module, freshly initialised; options are the family's own (``drop_rate=.2``, ...)."""
        return self.network.build(**options)

    def to_dict(self) -> dict[str, Json]:
        """Every figure as plain JSON data, with the family's own details (channels and repeats per stage, ...)."""
        own = (
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
        figures = {name: getattr(self, name) for name in own + formula}
        asked = {"limits": dict(self.limits), "binding": list(self.binding)}
        return {
            **figures,
            **asked,
            "num_classes": self.network.num_classes,
            "details": dict(self.network.details),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Label and text of each figure, for people."""
        base = self.network.space.baseline_macs(self.network.num_classes)
        return [
            ("r, d, w", ", ".join(spelled(self.network))),
            ("resolution", f"{self.resolution} pixels"),
            *((_label(key, value), _text(value)) for key, value in self.network.details.items()),
            ("FLOPs (multiply-adds)", millions(self.macs, grouped=True)),
            (
                "parameters",
                f"{millions(self.params, 2, grouped=True)} with {self.network.num_classes:,} classes",
            ),
            (
                "peak activation memory",
                f"{memory_size(self.activation_bytes, grouped=True)} (float32, batch 1)",
            ),
            ("r(c)", f"{self.r_mean:.4f} ± {self.r_std:.4f}"),
            ("d(c)", f"{self.d_mean:.4f} ± {self.d_std:.4f}"),
            (
                "largest c" if self.limits else "budget",
                f"c = {self.budget:g} of {millions(base, grouped=True)}; met with {self.c:.4f} ({self.c / self.budget - 1:+.1%})",
            ),
            *self._limit_rows(),
            ("formula", f"{self.formula}, {self.form} form"),
            *([("note", self.note)] if self.note else []),
        ]

    def _limit_rows(self) -> list[tuple[str, str]]:
        """What was asked, and the binding limits, each with how much of it is used."""
        if not self.limits:
            return []
        asked = [f"{name} {amount(name, limit)}" for name, limit in self.limits.items()]
        used = [
            f"{name} ({amount(name, getattr(self, name))} of {amount(name, self.limits[name])})"
            for name in self.binding
        ]
        none = "none: every limit is met at the formula's largest c"
        return [("limits", ", ".join(asked)), ("binding", ", ".join(used) or none)]

    def __repr__(self) -> str:
        bound = f", binding {', '.join(self.binding) or 'none'}" if self.limits else ""
        mark = ", extrapolated" if self.extrapolated else ""
        r, d, w = spelled(self.network)
        return (
            f"Suggestion({self.space} at c = {self.budget:g}: r={r}, d={d}, w={w}, "
            f"{self.resolution}px, {millions(self.macs, grouped=True)} FLOPs, {millions(self.params, 2, grouped=True)} params, "
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
            f'<tr style="background:none"><th style="{cell};font-weight:500;opacity:.7">{html.escape(label)}</th>'
            f'<td style="{cell};font-variant-numeric:tabular-nums">{html.escape(text)}</td></tr>'
            for label, text in self.rows()
        )
        title = html.escape(f"{self.space} at c = {self.budget:g}")
        caption = f'<caption style="{cell};font-weight:600;caption-side:top">{title}</caption>'
        return f'<table style="border-collapse:collapse;line-height:1.35">{caption}<tbody>{body}</tbody></table>'


def _label(key: str, value: Any) -> str:
    return f"{key} per stage" if isinstance(value, (list, tuple)) else key


def _text(value: Any) -> str:
    return ", ".join(str(v) for v in value) if isinstance(value, (list, tuple)) else str(value)
