"""scikit-learn: fitted estimators and pipelines, exported by skl2onnx.

A joblib or pickle file is a program, and is refused unless the user agrees to run it. A skops file is data: the types
it names are compared with those that are known to be harmless.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import skl2onnx
from skl2onnx.common import data_types
from sklearn.base import is_classifier
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.utils.validation import check_is_fitted

from skerry.api.errors import ForbiddenError, InvalidError, UnsupportedError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import SourceKind
from skerry.optimize import batching, evaluate, graph
from skerry.optimize.arrays import Array
from skerry.optimize.dataset import UNNAMED, Inputs
from skerry.optimize.foreign import first_line
from skerry.optimize.importers import Form, files, pickles
from skerry.optimize.importers.tensors import Reference, first
from skerry.optimize.recipe import SourceSpec

SKOPS = ".skops"
OUTPUT = "output"
_HINT = "save it with skops.io.dump(model, 'model.skops')"
_TYPES = {
    "float32": data_types.FloatTensorType,
    "int64": data_types.Int64TensorType,
    "int32": data_types.Int32TensorType,
    "uint8": data_types.UInt8TensorType,
    "int8": data_types.Int8TensorType,
    "bool": data_types.BooleanTensorType,
}
_SAME = 0.999
_NEWEST_OPSET = 22


class SklearnSource:
    """A fitted estimator; a classifier gives its probabilities, a regressor its values."""

    kind: SourceKind = "sklearn"
    forms: frozenset[Form] = frozenset({"onnx"})

    def __init__(self, model: Any, digests: Mapping[str, str], *, name: str) -> None:
        self.digests = digests
        self._model = model
        self._name = name
        self._classifier = is_classifier(model)
        if self._classifier and not hasattr(model, "predict_proba"):
            raise UnsupportedError(
                f"{type(model).__name__} gives no probabilities",
                element=name,
                hint="fit it with probabilities, or wrap it in CalibratedClassifierCV",
            )
        if not self._classifier and not hasattr(model, "predict"):
            raise UnsupportedError(f"{type(model).__name__} does not predict", element=name, hint="save the estimator")
        self._reference = Reference(
            names=[UNNAMED], run=self._run, hint="scikit-learn takes samples of one dimension: [n, features]"
        )

    def signature(self, inputs: Inputs) -> ModelSignature:
        """See `Source`."""
        return self._reference.signature(inputs)

    def predict(self, inputs: Inputs) -> Sequence[Array]:
        """See `Source`."""
        return list(self._reference.predict(inputs).values())

    def onnx(self, inputs: Inputs, *, opset: int) -> bytes:
        """See `Source`."""
        bound = self._reference.bound(inputs)
        samples = bound[UNNAMED]
        kind = _TYPES.get(samples.dtype.name)
        if kind is None:
            raise InvalidError(f"{samples.dtype.name} inputs do not become ONNX", element=self._name)
        options = {id(self._model): {"zipmap": False}} if self._classifier else None
        try:
            with warnings.catch_warnings(action="ignore"):
                model = skl2onnx.convert_sklearn(
                    self._model,
                    initial_types=[(UNNAMED, kind([None, *samples.shape[1:]]))],
                    target_opset={"": min(opset, _NEWEST_OPSET), "ai.onnx.ml": 3},
                    options=options,
                )
        except Exception as error:  # skl2onnx has no common exception type
            raise InvalidError(
                f"cannot be exported to ONNX ({first_line(error)})",
                element=self._name,
                hint="skl2onnx's documentation lists the estimators it knows",
            ) from error
        _keep_last_output(model)
        made = graph.serialise(batching.with_signature(model, self.signature(inputs)))
        runner = evaluate.Runner(made)
        for size in (1, 3):
            batch = first(bound, size)
            error_ = evaluate.numerical_error(runner.predict(batch), self.predict(batch))
            if error_.cosine < _SAME:
                cause = f"the exported graph differs from the model (cosine {error_.cosine:.4f}, batch {size})"
                raise InvalidError(cause, element=self._name)
        return made

    def native(self) -> object:
        """See `Source`: there is none."""
        raise UnsupportedError("a scikit-learn model has no other form than ONNX", element=self._name)

    def _run(self, batch: Inputs) -> dict[str, Array]:
        samples = batch[UNNAMED]
        if self._classifier:
            scores = self._model.predict_proba(samples)
            if isinstance(scores, list):
                raise InvalidError("predicts several targets at once", element=self._name, hint="fit one for each")
        else:
            scores = self._model.predict(samples)
            scores = scores[:, None] if scores.ndim == 1 else scores
        return {OUTPUT: np.asarray(scores, dtype=np.float32)}


def open_source(spec: SourceSpec, *, seed: int) -> SklearnSource:  # noqa: ARG001 - nothing here is left to chance
    """Read a fitted estimator; see `importers.open_source`."""
    path = Path(spec.path)
    files.check(path, hint=_HINT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read = _from_skops if path.suffix == SKOPS else _from_pickle
        model = read(path, allow_code=spec.allow_code)
    for warning in caught:
        if isinstance(warning.message, InconsistentVersionWarning):
            cause = f"was saved by scikit-learn {warning.message.original_sklearn_version}, another version than here"
            raise InvalidError(cause, element=path.name, hint="install that version, or fit it again")
    try:
        check_is_fitted(model)
    except Exception as error:
        raise InvalidError(
            f"holds {type(model).__name__}, which is no fitted estimator", element=path.name, hint=_HINT
        ) from error
    return SklearnSource(model, {path.name: files.digest(path)}, name=path.name)


def _from_skops(path: Path, *, allow_code: bool) -> Any:
    try:
        from skops import io  # noqa: PLC0415 - only this format needs it
    except ModuleNotFoundError as error:
        hint = "pip install 'skerry[sklearn]'"
        raise UnsupportedError("skops is not installed", element=path.name, hint=hint) from error
    try:
        unknown = io.get_untrusted_types(file=path)
    except Exception as error:  # a damaged archive fails in many ways
        raise InvalidError(f"is no skops file ({first_line(error)})", element=path.name, hint=_HINT) from error
    if unknown and not allow_code:
        more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
        raise ForbiddenError(
            f"holds types that are not known to be harmless ({', '.join(unknown[:4])}{more}); nothing was run",
            element=path.name,
            hint="give --allow-code if you trust the file; trees always need it",
        )
    try:
        return io.load(path, trusted=unknown)
    except Exception as error:
        raise InvalidError(f"cannot be loaded ({first_line(error)})", element=path.name, hint=_HINT) from error


def _from_pickle(path: Path, *, allow_code: bool) -> Any:
    if not allow_code:
        found = pickles.found_in(files.read(path, hint=_HINT))
        raise ForbiddenError(
            f"is a pickle, which is a program{found}; it was not run",
            element=path.name,
            hint=f"{_HINT}, or agree to run it with --allow-code",
        )
    import joblib  # noqa: PLC0415 - only where the user agreed

    try:
        return joblib.load(path)
    except Exception as error:
        raise InvalidError(f"cannot be loaded ({first_line(error)})", element=path.name, hint=_HINT) from error


def _keep_last_output(model: Any) -> None:
    """Drop the labels that classifiers give beside their probabilities, and name what is left."""
    kept = model.graph.output[-1]
    before = kept.name
    copy = type(kept).FromString(kept.SerializeToString())
    del model.graph.output[:]
    if before != OUTPUT:
        copy.name = OUTPUT
        for node in model.graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == before:
                        names[place] = OUTPUT
    model.graph.output.append(copy)
