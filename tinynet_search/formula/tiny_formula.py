"""The tiny formula: r(c) and d(c) learned from a frontier, w from the budget (section 3.2, equations 2-5).

Two forms are fitted side by side. ``paper`` is equations 2-4 to the letter: raw c and a zero mean, which falls to 0
away from the data and may dip between points. ``default`` is the same regression over log c on centred targets.
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
from tinynet_search.formula.digits import tidy
from tinynet_search.formula.files import PUBLISHED, parse, read_text
from tinynet_search.formula.gaussian_process import (
    MOST_FITTED,
    Bounds,
    Kernel,
    Posterior,
    Prediction,
    fit_forms,
    spread,
)
from tinynet_search.formula.limits import largest
from tinynet_search.formula.suggestion import Suggestion

__all__ = ["Prediction", "Suggestion", "TinyFormula", "fit_formula", "suggest_rdw"]


@dataclass(frozen=True)
class TinyFormula:
    """r(c) and d(c) as data: training points, kernels, provenance.

    Attributes:
        space, space_version, num_classes: where the points were measured.
        points: (c, r, d) by rising c, c the exact fraction of the baseline's multiply-adds.
        forms: kernels by form (``paper``, ``default``) and target (``r``, ``d``); empty where unusable.
        provenance: what it was fitted to; JSON data. ``thinned_from`` is the number of points given to ``fit_formula``
            where ``points`` are only the ``MOST_FITTED`` of them that span c best.
        reason: why it cannot be used; None where it can.
        source: the name or file it was read from.
    """

    space: str
    space_version: int
    num_classes: int
    points: tuple[tuple[float, float, float], ...]
    forms: Mapping[str, Mapping[str, Kernel]]
    provenance: Provenance
    reason: str | None = None
    source: str = "fitted here"
    _posteriors: dict[tuple[str, str], Posterior] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def usable(self) -> bool:
        """Whether it has forms to predict with; ``reason`` says why not."""
        return self.reason is None

    @property
    def range(self) -> tuple[float, float] | None:
        """Lowest and highest c of the points."""
        return (self.points[0][0], self.points[-1][0]) if self.points else None

    def to_json(self) -> str:
        """The formula as a JSON document; ``from_json`` reads the same formula back."""
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
    def from_json(cls, text: str, source: str = "formula") -> "TinyFormula":
        """Read a formula; nothing in it is run.

        Raises:
            RequestError: it is damaged, of another schema, absurd in size, or its kernel is singular.
        """
        try:
            contents = parse(text)
        except DamagedError as error:
            raise RequestError(f"formula {one_line(source)}: {error}") from error
        formula = cls(**vars(contents), source=source)
        for form, target in ((form, target) for form in formula.forms for target in "rd"):
            formula._posterior(form, target)
        return formula

    @classmethod
    def load(cls, name: str | Path, *, tracking_uri: str | None = None) -> "TinyFormula":
        """The formula called ``published``, in a .json file, or in MLflow's registry as ``models:/name@alias`` or ``models:/name/version``.

        Raises:
            RequestError: there is no such formula, or it is damaged.
            TrackingError: MLflow (at ``tracking_uri``, else at its own default) does not answer.
        """
        text, source = read_text(str(name), tracking_uri), str(name)
        if source == PUBLISHED:
            # The package's own file, which a test checks: pydantic takes longer to import than a suggestion takes.
            return cls(**vars(FormulaContents.from_json(json.loads(text))), source=source)
        return cls.from_json(text, source)

    def predict(self, c: Any, form: str = "default") -> Prediction:
        """Equation 4 at c, a number or an array: means and standard deviations of r and d, noise included.

        Raises:
            RequestError: c is not above 0, the form is unknown, or the formula is not usable.
        """
        costs = np.asarray(c, float)
        if not np.all((costs > 0) & np.isfinite(costs)):
            raise RequestError(
                f"c = {one_line(c, 60)} is no fraction of the baseline's FLOPs: give numbers above 0"
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
        """The network for a budget: r and d from the formula, the width from the exact cost (equation 5 its first guess).

        Predictions are clipped to the space's ranges. Outside the range of the training points, and only when told to
        ``extrapolate``, r and d are those of the nearest end of the range; the standard deviations stay those at c.

        With limits it is the network of the largest c on the formula that meets them all, c itself a limit where it is
        given too: largest to .1 % of c (see ``limits.largest``). ``binding`` says which of them the next larger breaks.

        Args:
            c: budget, a fraction of the baseline's multiply-adds in (0, 1].
            macs, params: most multiply-adds and parameters; the exact figures keep to them.
            activation_bytes: most peak memory of feature maps, float32 at batch 1. Give four times the bytes of an 8-bit runtime.
            tol: largest accepted ``abs(suggestion.c - c) / c``.
            space: where to build it; None is the formula's own space.
            num_classes: classes of the network; None is the formula's own on its own space, else the space's default.

        Raises:
            RequestError: c is no budget or outside the range, a limit is no number above 0 or beyond the formula's reach, the
                formula is not usable, or no network meets the budget.
        """
        asked = checked_request(
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
        alone = asked.keys() == {"c"}
        budget, binding = (asked["c"], ()) if alone else largest(curve, asked)
        network, predicted = tidy(curve.network(budget)), curve.predicted(budget)
        notes, limits = self._notes(curve, budget, predicted), {} if alone else asked
        if limits and not binding:
            largest_c = f"c = {budget:g} is the largest that the formula is asked for"
            notes.append(f"no limit binds: {largest_c}")
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
        """What the reader of a network at c should know besides."""
        space, notes = curve.space, []
        if space.name != self.space:
            fitted = f"r(c) and d(c) were fitted on {one_line(self.space)}"
            notes.append(f"{space.name} has no formula of its own here: {fitted}")
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
                    f"formula {one_line(self.source)}: the kernel matrix of forms.{form}.{target} is singular"
                ) from error
        return self._posteriors[form, target]

    def classes(self, space: SearchSpace) -> int:
        """Classes where none are asked for: the formula's own on its own space, else the space's default."""
        return self.num_classes if space.name == self.space else space.num_classes

    def get_space(self, space: str | SearchSpace | None) -> SearchSpace:
        """The space to build in; the formula's own also reaches to the r and d that it was fitted to.

        A formula may name built-in spaces only: a ``module:attribute`` read from a file would be code to run.
        """
        if space is None and self.space not in list_spaces():
            mend = "pass the space itself (--space module:attribute)"
            raise RequestError(
                f"formula {one_line(self.source)} is of {one_line(self.space)!r}, no built-in space: {mend}"
            )
        found = space if isinstance(space, SearchSpace) else get_space(space or self.space)
        if (found.name, found.version) != (self.space, self.space_version):
            return found
        fitted = {"r": [r for _, r, _ in self.points], "d": [d for _, _, d in self.points]}
        spans = {
            key: (min(found.ranges[key][0], *values), max(found.ranges[key][1], *values))
            for key, values in fitted.items()
        }
        return (
            found
            if all(found.ranges[key] == span for key, span in spans.items())
            else found.narrowed(spans)
        )


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

    Of more than ``MOST_FITTED`` points the formula is fitted to those that span c best, and its provenance says of how many.

    Args:
        points: (c, r, d) of each frontier model; repeated c are noise. Under five, the formula says it is not usable.
        provenance: JSON data that says where the points come from.
        seed: of the optimiser's random starts.
        num_classes: of the classifiers in c; None is the space's default.
        bounds: of the hyper-parameters by (form, target), where not the usual ones.

    Raises:
        RequestError: a point is no (c, r, d) of positive, sane numbers, or provenance is not JSON data.
    """
    from tinynet_search.formula.document import check_points

    try:
        rows = [dict(zip("crd", map(float, point), strict=True)) for point in points]
        checked = tuple(sorted(check_points(rows)))
        origin = json.loads(json.dumps(dict(provenance), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RequestError(f"no formula can be fitted: {one_line(error)}") from error
    if len(checked) > MOST_FITTED:
        origin["thinned_from"] = len(checked)
        checked = tuple(spread(checked, MOST_FITTED))
    classes = space.num_classes if num_classes is None else num_classes
    formula = TinyFormula(space.name, space.version, classes, checked, {}, origin)
    if len(checked) < MIN_POINTS:
        return replace(
            formula,
            reason=f"{len(checked)} frontier models, at least {MIN_POINTS} are needed: run more trials",
        )
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
    """The tiny formula's network for a budget, ``r, d, w = suggest_rdw(0.25)``, or within limits, ``suggest_rdw(params=2e6)``.

    Args:
        c: budget, a fraction of the baseline's FLOPs (multiply-adds) in (0, 1].
        macs, params, activation_bytes: limits, alone or beside c; see ``TinyFormula.suggest``.
        space: search space, or its name; None is the formula's own. A space other than the formula's gets a note.
        num_classes: classes of the network; None is the formula's own on its own space, else the space's default.
        formula: ``published``, a .json file, ``models:/name@alias``, ``models:/name/version``, or a formula itself.
        extrapolate: accept a c outside the formula's range, with r and d of its nearest end.
        form: ``default``, or ``paper`` for equations 2-4 to the letter.
        tracking_uri: MLflow's address for ``models:/``; None is MLflow's own default.

    Raises:
        RequestError: the budget, a limit, the space, formula or form is wrong; the message says how to mend it.
        TrackingError: MLflow does not answer.
    """
    checked_request({"c": c, "macs": macs, "params": params, "activation_bytes": activation_bytes})
    found = (
        formula
        if isinstance(formula, TinyFormula)
        else TinyFormula.load(formula, tracking_uri=tracking_uri)
    )
    return found.suggest(
        c,
        macs=macs,
        params=params,
        activation_bytes=activation_bytes,
        extrapolate=extrapolate,
        form=form,
        space=space,
        num_classes=num_classes,
    )
