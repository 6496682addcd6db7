"""The tiny formula: r(c) and d(c) learned from a frontier, w from the budget (section 3.2).

Called by searches, which fit formulas, and by users and commands for suggestions.

Two forms are fitted. ``paper`` follows equations 2-4 exactly: it uses c and a zero mean, so it
decays to 0 away from the data and may dip between points. ``default`` is the same regression over
log c with centred targets. The width follows from the budget (equation 5).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces import RequestError, SearchSpace, get_space, list_spaces
from search_spaces.errors import unknown
from tinynet_search.errors import one_line
from tinynet_search.formula.budget import checked_request
from tinynet_search.formula.contents import (
    FORMS,
    MIN_POINTS,
    SCHEMA,
    DamagedError,
    FormulaContents,
    Provenance,
)
from tinynet_search.formula.curve import Curve
from tinynet_search.formula.digits import shorten_rdw
from tinynet_search.formula.files import PUBLISHED, parse, read_text
from tinynet_search.formula.gaussian_process import (
    MAX_FITTED,
    Bounds,
    Kernel,
    Posterior,
    Prediction,
    fit_forms,
    thin_points,
)
from tinynet_search.formula.limits import largest_c
from tinynet_search.formula.suggestion import Suggestion

__all__ = ["Prediction", "Suggestion", "TinyFormula", "fit_formula", "suggest_rdw"]


@dataclass(frozen=True)
class TinyFormula:
    """r(c) and d(c) as data: training points, kernels, provenance.

    Attributes:
        space, space_version, num_classes: The space in which the points were measured.
        points: (c, r, d) sorted by c; c is the exact fraction of the baseline's multiply-adds.
        forms: Kernels by form (``paper``, ``default``) and target (``r``, ``d``); empty if
            unusable.
        provenance: JSON data that describes what the formula was fitted to. If ``fit_formula`` kept
            only the ``MAX_FITTED`` points that cover c best, ``thinned_from`` is the original
            number.
        reason: Why the formula cannot be used, None if it can.
        source: The name or file that it was read from.
        note: How ``source`` was chosen, None if it is the name that was given.
    """

    space: str
    space_version: int
    num_classes: int
    points: tuple[tuple[float, float, float], ...]
    forms: Mapping[str, Mapping[str, Kernel]]
    provenance: Provenance
    reason: str | None = None
    source: str = "fitted here"
    note: str | None = None
    _posteriors: dict[tuple[str, str], Posterior] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def usable(self) -> bool:
        """Whether the formula can predict; if not, ``reason`` explains why."""
        return self.reason is None

    @property
    def range(self) -> tuple[float, float] | None:
        """Lowest and highest c of the points."""
        return (self.points[0][0], self.points[-1][0]) if self.points else None

    @property
    def leave_one_out_error(self) -> float:
        """Root mean square error of r and d when each point is predicted from all others.

        ``sqrt(mean((r - r_i)^2 / 2 + (d - d_i)^2 / 2))`` over the points, where r_i and d_i are the
        means of the ``default`` form given the other points, with the hyper-parameters of all
        points. Like r and d it is a factor of the baseline, without a unit.

        Raises:
            RequestError: The formula is not usable.
        """
        errors = [self._posterior("default", target).leave_one_out() for target in "rd"]
        return float(np.sqrt(np.mean(np.square(errors))))

    def to_json(self) -> str:
        """Serialise the formula to JSON; ``from_json`` restores the same formula."""
        document = {
            "schema": SCHEMA,
            "space": self.space,
            "space_version": self.space_version,
            "num_classes": self.num_classes,
            "usable": self.usable,
            "reason": self.reason,
            "points": [{"c": c, "r": r, "d": d} for c, r, d in self.points],
            "forms": {
                form: {target: asdict(kernel) for target, kernel in kernels.items()}
                for form, kernels in self.forms.items()
            },
            "range": self.range,
            "provenance": self.provenance,
        }
        return json.dumps(document, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(
        cls, text: str, source: str = "formula", note: str | None = None
    ) -> "TinyFormula":
        """Parse a formula. No code in it is executed.

        Raises:
            RequestError: The formula is damaged, has a different schema, exceeds the size limits,
                or has a singular kernel matrix.
        """
        try:
            contents = parse(text)
        except DamagedError as error:
            raise RequestError(f"formula {one_line(source)}: {error}") from error
        formula = cls(**vars(contents), source=source, note=note)
        for form, target in ((form, target) for form in formula.forms for target in "rd"):
            formula._posterior(form, target)
        return formula

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        tracking_uri: str | None = None,
        space: str | SearchSpace | None = None,
    ) -> "TinyFormula":
        """Load a formula.

        Args:
            name: ``published``, a .json file, or a model in the MLflow registry
                (``models:/name@alias`` or ``models:/name/version``). If ``name`` is not a
                registered model, ``name-<space>`` is loaded.
            tracking_uri: Address of MLflow; None is MLflow's default.
            space: The space that selects a registered model ``name-<space>``; None selects the only
                one.

        Raises:
            RequestError: The formula does not exist, it is damaged, or the registry has several
                models ``name-<space>`` and no space is given.
            TrackingError: MLflow does not respond.
        """
        file = read_text(str(name), tracking_uri, space)
        if file.source == PUBLISHED:
            # The package's own file is validated by a test, not here: importing pydantic takes
            # longer than a suggestion.
            contents = FormulaContents.from_json(json.loads(file.text))
            return cls(**vars(contents), source=file.source)
        return cls.from_json(file.text, file.source, file.note)

    def predict(self, c: Any, form: str = "default") -> Prediction:
        """Equation 4 at c: means and standard deviations of r and d, noise included.

        Args:
            c: A number or an array.

        Raises:
            RequestError: c is not above 0, the form is unknown, or the formula is not usable.
        """
        costs = np.asarray(c, float)
        if not np.all((costs > 0) & np.isfinite(costs)):
            raise RequestError(
                f"c = {one_line(c, 60)} is not a valid fraction of the baseline's FLOPs: "
                "pass finite numbers above 0"
            )
        figures = [
            values for target in "rd" for values in self._posterior(form, target)(costs.ravel())
        ]
        if costs.ndim == 0:
            return Prediction(*(float(values[0]) for values in figures))
        return Prediction(*(values.reshape(costs.shape) for values in figures))

    def suggest(
        self,
        c: float | None = None,
        *,
        macs: float | None = None,
        params: float | None = None,
        activation_bytes: float | None = None,
        extrapolate: bool = False,
        form: str = "default",
        tol: float = 0.03,
        space: str | SearchSpace | None = None,
        num_classes: int | None = None,
    ) -> Suggestion:
        """The network for a budget.

        r and d come from the formula; the width is solved on the exact cost, starting from equation
        5. Predictions are clipped to the space's ranges. With ``extrapolate``, a c outside the
        range of the training points uses r and d of the nearest end of the range and the standard
        deviations at c.

        With limits, the result is the network of the largest c on the formula that meets all
        limits, to .1 % of c (see ``limits.largest_c``). If c is also given, it is one of the
        limits. ``binding`` contains the limits that the next larger network exceeds.

        Args:
            c: Budget, a fraction of the baseline's multiply-adds in (0, 1].
            macs, params: Maximum multiply-adds and parameters of the exact network.
            activation_bytes: Maximum peak memory of feature maps, float32 at batch 1. For an 8-bit
                runtime, pass four times its bytes.
            extrapolate: Accept a c outside the formula's range.
            form: ``default`` or ``paper``.
            tol: Largest accepted ``abs(suggestion.c - c) / c``.
            space: Space of the network; None is the formula's own space.
            num_classes: Number of classes of the network; None is the formula's own on its own
                space, else the space's default.

        Raises:
            RequestError: c is not a valid budget or is outside the range, a limit is not a number
                above 0 or cannot be met, the formula is not usable, or no network meets the budget.
        """
        request = checked_request(
            {"c": c, "macs": macs, "params": params, "activation_bytes": activation_bytes}
        )
        self._require_usable()
        target = self.get_space(space)
        curve = Curve(
            partial(self.predict, form=form),
            (self.points[0][0], self.points[-1][0]),
            self.source,
            target,
            self.classes(target) if num_classes is None else num_classes,
            tol,
            extrapolate,
        )
        only_c = request.keys() == {"c"}
        budget, binding = (request["c"], ()) if only_c else largest_c(curve, request)
        network, predicted = shorten_rdw(curve.network(budget)), curve.predicted(budget)
        notes, limits = self._notes(curve, budget, predicted), {} if only_c else request
        if limits and not binding:
            notes.append(f"no limit binds: c = {budget:g} is the largest c considered")
        note = "; ".join(notes) or None
        return Suggestion(
            budget,
            network,
            predicted,
            curve.outside(budget),
            self.source,
            form,
            note,
            limits,
            binding,
        )

    def _notes(self, curve: Curve, c: float, predicted: Prediction) -> list[str]:
        """Additional information for the user about a suggestion at c."""
        space, notes = curve.space, [one_line(self.note)] if self.note else []
        if space.name != self.space:
            fitted = f"r(c) and d(c) were fitted on {one_line(self.space)}"
            notes.append(f"{space.name} has no formula of its own: {fitted}")
        elif space.version != self.space_version:
            fitted = f"fitted on version {self.space_version} of {space.name}"
            notes.append(f"{fitted}, built on version {space.version}")
        if curve.outside(c):
            low, high = curve.span
            nearest = "r and d are those of its nearest end"
            notes.append(f"outside the formula's range {low:g} to {high:g}: {nearest}")
        means = ((predicted.r_mean, "r"), (predicted.d_mean, "d"))
        if any(np.clip(mean, *space.ranges[name]) != mean for mean, name in means):
            notes.append("r or d clipped to the space's range")
        return notes

    def _require_usable(self) -> None:
        if not self.usable:
            raise RequestError(
                f"formula {one_line(self.source)} is not usable: {one_line(self.reason)}"
            )

    def _posterior(self, form: str, target: str) -> Posterior:
        self._require_usable()
        if form not in FORMS:
            raise unknown("form", form, FORMS)
        if (form, target) not in self._posteriors:
            targets = [point[1 if target == "r" else 2] for point in self.points]
            try:
                self._posteriors[form, target] = Posterior(
                    self.forms[form][target], [point[0] for point in self.points], targets
                )
            except np.linalg.LinAlgError as error:
                raise RequestError(
                    f"formula {one_line(self.source)}: "
                    f"the kernel matrix of forms.{form}.{target} is singular"
                ) from error
        return self._posteriors[form, target]

    def classes(self, space: SearchSpace) -> int:
        """Default number of classes: the formula's on its own space, else the space's default."""
        return self.num_classes if space.name == self.space else space.num_classes

    def get_space(self, space: str | SearchSpace | None) -> SearchSpace:
        """The space of the networks.

        The ranges of the formula's own space are extended to the r and d that it was fitted to.

        Raises:
            RequestError: The space is unknown, or it is the formula's own space and not a built-in
                one: a ``module:attribute`` from a file is not imported, because that runs code.
        """
        if space is None and self.space not in list_spaces():
            raise RequestError(
                f"formula {one_line(self.source)} was fitted on {one_line(self.space)!r}, which is "
                "not a built-in space: pass the space itself (--space module:attribute)"
            )
        target = space if isinstance(space, SearchSpace) else get_space(space or self.space)
        if (target.name, target.version) != (self.space, self.space_version):
            return target
        fitted = {"r": [r for _, r, _ in self.points], "d": [d for _, _, d in self.points]}
        spans = {
            key: (min(target.ranges[key][0], *values), max(target.ranges[key][1], *values))
            for key, values in fitted.items()
        }
        if all(target.ranges[key] == span for key, span in spans.items()):
            return target
        return target.narrowed(spans)


def fit_formula(
    space: SearchSpace,
    points: Sequence[tuple[float, float, float]],
    *,
    provenance: Provenance,
    seed: int = 0,
    num_classes: int | None = None,
    bounds: Mapping[tuple[str, str], Bounds] | None = None,
) -> TinyFormula:
    """Fit both forms to a frontier (equations 2-4); the order of the points does not matter.

    If more than ``MAX_FITTED`` points are given, the formula is fitted to those that cover c best,
    and its provenance records the original number.

    Args:
        points: (c, r, d) of each frontier model; repeated c are treated as noise. With fewer than
            five points the formula is marked as not usable.
        provenance: JSON data that describes the origin of the points.
        seed: Seed of the optimiser's random starts.
        num_classes: Number of classes of the networks behind c; None is the space's default.
        bounds: Bounds of the hyper-parameters by (form, target) that replace the defaults.

    Raises:
        RequestError: A point is not a (c, r, d) of positive numbers within the bounds, or
            provenance is not JSON data.
    """
    from tinynet_search.formula.document import check_points

    try:
        rows = [dict(zip("crd", map(float, point), strict=True)) for point in points]
        checked = tuple(sorted(check_points(rows)))
        origin = json.loads(json.dumps(dict(provenance), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RequestError(f"no formula can be fitted: {one_line(error)}") from error
    if len(checked) > MAX_FITTED:
        origin["thinned_from"] = len(checked)
        checked = tuple(thin_points(checked, MAX_FITTED))
    classes = space.num_classes if num_classes is None else num_classes
    formula = TinyFormula(space.name, space.version, classes, checked, {}, origin)
    if len(checked) < MIN_POINTS:
        reason = f"{len(checked)} frontier models, at least {MIN_POINTS} are needed"
        return replace(formula, reason=f"{reason}: run more trials")
    return replace(formula, forms=fit_forms(checked, seed, bounds or {}))


def suggest_rdw(
    c: float | None = None,
    *,
    macs: float | None = None,
    params: float | None = None,
    activation_bytes: float | None = None,
    space: str | SearchSpace | None = None,
    num_classes: int | None = None,
    formula: str | Path | TinyFormula = "published",
    extrapolate: bool = False,
    form: str = "default",
    tracking_uri: str | None = None,
) -> Suggestion:
    """The tiny formula's network for a budget or for limits.

    ``r, d, w = suggest_rdw(0.25)`` uses a quarter of the baseline's FLOPs;
    ``suggest_rdw(params=2e6)`` has at most two million parameters.

    Args:
        c: Budget, a fraction of the baseline's FLOPs (multiply-adds) in (0, 1].
        macs, params, activation_bytes: Limits, alone or in addition to c; see
            ``TinyFormula.suggest``.
        space: Search space, or its name; None is the formula's own. Any other space adds a note to
            the suggestion.
        num_classes: Number of classes of the network; None is the formula's own on its own space,
            else the space's default.
        formula: ``published``, a .json file, ``models:/name@alias``, ``models:/name/version``, or a
            TinyFormula. ``models:/tiny-formula@champion`` is the registered formula of the space.
        extrapolate: Accept a c outside the formula's range, with r and d of its nearest end.
        form: ``default``, or ``paper`` for exactly equations 2-4.
        tracking_uri: MLflow's address for ``models:/``; None is MLflow's default.

    Raises:
        RequestError: The budget, a limit, the space, the formula or the form is invalid. The
            message explains how to fix it.
        TrackingError: MLflow does not respond.
    """
    checked_request({"c": c, "macs": macs, "params": params, "activation_bytes": activation_bytes})
    if not isinstance(formula, TinyFormula):
        formula = TinyFormula.load(formula, tracking_uri=tracking_uri, space=space)
    return formula.suggest(
        c,
        macs=macs,
        params=params,
        activation_bytes=activation_bytes,
        extrapolate=extrapolate,
        form=form,
        space=space,
        num_classes=num_classes,
    )
