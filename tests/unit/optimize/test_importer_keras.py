"""Keras files, SavedModels and TensorFlow Lite files: what they do is kept, and code in them is never run."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from skerry.api.errors import ForbiddenError, InvalidError, NotFoundError, SkerryError, UnsupportedError
from skerry.optimize import evaluate, graph, importers
from skerry.optimize.importers import Source
from skerry.optimize.recipe import SourceSpec

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' saving

IMAGES = np.random.default_rng(0).random((5, 8, 8, 1), dtype=np.float32)
FACTS = np.random.default_rng(1).random((5, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def model() -> Any:
    keras.utils.set_random_seed(1)
    image, facts = keras.Input((8, 8, 1), name="image"), keras.Input((3,), name="facts")
    hidden = keras.layers.Conv2D(4, 3, activation="relu")(image)
    hidden = keras.layers.Flatten()(keras.layers.BatchNormalization()(hidden))
    both = keras.layers.Concatenate()([hidden, facts])
    outputs = [keras.layers.Dense(4, name="scores")(both), keras.layers.Dense(1, name="age")(both)]
    return keras.Model([image, facts], outputs)


@pytest.fixture(scope="module")
def small() -> Any:
    keras.utils.set_random_seed(2)
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    return keras.Sequential(layers)


def opened(path: Path, **options: Any) -> Source:
    return importers.open_source(SourceSpec(path=str(path), **options))


def check(source: Source, inputs: dict[str, np.ndarray], expected: list[np.ndarray]) -> None:
    for ours, theirs in zip(source.predict(inputs), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    if "onnx" in source.forms:
        raw = source.onnx(inputs, opset=20)
        assert graph.signature(graph.parse(raw)) == source.signature(inputs)
        for ours, theirs in zip(evaluate.Runner(raw).predict(inputs), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_model_with_several_inputs_and_outputs(model: Any, tmp_path: Path) -> None:
    model.save(tmp_path / "m.keras")
    source = opened(tmp_path / "m.keras")
    expected = [output.numpy() for output in model([IMAGES, FACTS], training=False)]
    check(source, {"facts": FACTS, "image": IMAGES}, expected)
    signature = source.signature({"facts": FACTS, "image": IMAGES})
    assert [(spec.name, spec.shape) for spec in signature.inputs] == [("image", [-1, 8, 8, 1]), ("facts", [-1, 3])]
    assert [(spec.name, spec.shape) for spec in signature.outputs] == [("scores", [-1, 4]), ("age", [-1, 1])]
    assert (source.kind, source.forms, set(source.digests)) == ("keras", frozenset({"keras", "onnx"}), {"m.keras"})
    assert isinstance(source.native(), keras.Model)


def test_a_sequential_model_and_one_built_with_a_dict(small: Any, tmp_path: Path) -> None:
    small.save(tmp_path / "m.keras")
    check(opened(tmp_path / "m.keras"), {"input": IMAGES}, [small(IMAGES, training=False).numpy()])
    first, second = keras.Input((3,), name="first"), keras.Input((3,), name="second")
    difference = keras.Model(
        {"second": second, "first": first}, keras.layers.Subtract(name="difference")([first, second])
    )
    difference.save(tmp_path / "dict.keras")
    check(opened(tmp_path / "dict.keras"), {"first": FACTS, "second": 2 * FACTS}, [-FACTS])


def test_the_same_model_gives_the_same_graph(small: Any, tmp_path: Path) -> None:
    small.save(tmp_path / "m.keras")
    graphs = []
    for _ in range(2):
        keras.backend.clear_session()  # it counts the layers of a process
        graphs.append(opened(tmp_path / "m.keras").onnx({"input": IMAGES}, opset=20))
    first, second = graphs
    assert first == second
    assert os.fsencode(tmp_path) not in first


def test_a_savedmodel(model: Any, small: Any, tmp_path: Path) -> None:
    small.export(tmp_path / "small", verbose=False)
    source = opened(tmp_path / "small")
    expected = small(IMAGES, training=False).numpy()
    check(source, {"input": IMAGES}, [expected])
    assert (source.kind, source.forms) == ("savedmodel", frozenset({"keras", "onnx"}))
    assert "small/saved_model.pb" in source.digests
    np.testing.assert_allclose(source.native()(IMAGES)["output_0"], expected, rtol=1e-4, atol=1e-6)
    (tmp_path / "m.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(source.native()).convert())
    check(opened(tmp_path / "m.tflite"), {"input": IMAGES}, [expected])

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 1), name="image"), tf.TensorSpec((None, 3), name="facts")])  # type: ignore[untyped-decorator]
    def serve(image: Any, facts: Any) -> dict[str, Any]:
        scores, age = model([image, facts], training=False)
        return {"scores": scores, "age": age}

    model.serve = serve
    tf.saved_model.save(model, str(tmp_path / "both"), signatures=serve)
    scores, age = (output.numpy() for output in model([IMAGES, FACTS], training=False))
    both = opened(tmp_path / "both")
    check(both, {"image": IMAGES, "facts": FACTS}, [age, scores])  # a signature sorts its outputs
    given = [
        {"image": IMAGES, "facts": FACTS}[spec.name]
        for spec in both.signature({"image": IMAGES, "facts": FACTS}).inputs
    ]
    np.testing.assert_allclose(both.native()(given)["age"], age, rtol=1e-4, atol=1e-6)


def test_a_tflite_file_is_passed_through_and_run(small: Any, model: Any, tmp_path: Path) -> None:
    for name, made in (("small", small), ("model", model)):
        converter = tf.lite.TFLiteConverter.from_keras_model(made)
        (tmp_path / f"{name}.tflite").write_bytes(converter.convert())
    source = opened(tmp_path / "small.tflite")
    check(source, {"input": IMAGES}, [small(IMAGES, training=False).numpy()])
    assert source.signature({"input": IMAGES}).inputs[0].shape == [-1, 8, 8, 1]
    assert source.native() == (tmp_path / "small.tflite").read_bytes()
    with pytest.raises(UnsupportedError, match="does not become ONNX"):
        source.onnx({"input": IMAGES}, opset=20)
    several = opened(tmp_path / "model.tflite")
    signature = several.signature({"image": IMAGES, "facts": FACTS})
    assert {spec.name for spec in signature.inputs} == {"image", "facts"}
    assert sorted(spec.shape[1] for spec in signature.outputs) == [1, 4]


def test_a_tflite_file_with_a_fixed_batch_is_run_in_pieces(tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    fixed = keras.Sequential([keras.Input(batch_shape=(2, 8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    (tmp_path / "m.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(fixed).convert())
    expected = np.concatenate([fixed(np.resize(IMAGES[at : at + 2], (2, 8, 8, 1))).numpy() for at in (0, 2, 4)])[:5]
    source = opened(tmp_path / "m.tflite")
    check(source, {"input": IMAGES}, [expected])
    assert source.signature({"input": IMAGES}).inputs[0].shape == [-1, 8, 8, 1]
    fixed.save(tmp_path / "m.keras")
    check(opened(tmp_path / "m.keras"), {"input": IMAGES}, [expected])


def test_a_tflite_file_whose_variables_were_lost_is_refused(small: Any, tmp_path: Path) -> None:
    """The converter leaves them out of some SavedModels of Keras models; LiteRT then reads stray memory."""

    @tf.function(input_signature=[tf.TensorSpec((2, 8, 8, 1), name="image")])  # type: ignore[untyped-decorator]
    def serve(image: Any) -> Any:
        return small(image, training=False)

    tf.saved_model.save(small, str(tmp_path / "saved"), signatures=serve)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved"))
    (tmp_path / "m.tflite").write_bytes(converter.convert())
    with pytest.raises(InvalidError, match=r"m\.tflite: .*READ_VARIABLE"):
        opened(tmp_path / "m.tflite").signature({"input": IMAGES})


def test_python_in_a_lambda_layer_is_refused_and_would_have_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = eval(f"lambda x: [__import__('os').makedirs({str(mark)!r}, exist_ok=True), x][1]")
    trap = keras.layers.Lambda(code, name="trap")
    keras.Sequential([keras.Input((3,)), trap]).save(tmp_path / "m.keras")
    if mark.exists():
        mark.rmdir()  # building it has run it
    with pytest.raises(ForbiddenError, match=r"layer trap is a Lambda layer with Python code; it was not run"):
        opened(tmp_path / "m.keras")
    assert not mark.exists()
    opened(tmp_path / "m.keras", allow_code=True)
    assert mark.exists()


def test_layers_of_somebody_else_need_their_file(tmp_path: Path) -> None:
    code = tmp_path / "layers.py"
    code.write_text(
        "import keras\n\n\n@keras.saving.register_keras_serializable(package='skerrytest')\n"
        "class Twice(keras.layers.Layer):\n    def call(self, x):\n        return 2 * x\n"
    )
    space: dict[str, Any] = {}
    exec(compile(code.read_text(), str(code), "exec"), space)
    keras.Sequential([keras.Input((3,)), space["Twice"](name="twice")]).save(tmp_path / "m.keras")
    with pytest.raises(
        UnsupportedError, match=r"layer twice is of the class skerrytest>Twice, which is not Keras' own"
    ):
        opened(tmp_path / "m.keras")
    source = opened(tmp_path / "m.keras", code=str(code))
    check(source, {"input": FACTS}, [2 * FACTS])
    assert set(source.digests) == {"m.keras", "layers.py"}


def test_classes_of_other_modules_are_never_imported(small: Any, tmp_path: Path) -> None:
    small.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][1].update(module="antigravity", class_name="fly", registered_name=None)
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(tmp_path / "evil.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(UnsupportedError, match=r"of the class antigravity\.fly"):
        opened(tmp_path / "evil.keras")


def walked(dataset: Any) -> Any:
    return dataset.reduce(0, lambda number, _: number + 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, mark: tf.io.write_file(mark, "x"), r"\(WriteFile\) writes a file"),
        (lambda x, mark: tf.io.read_file(mark), r"\(ReadFile\) reads a file"),
        (lambda x, mark: tf.py_function(lambda: os.mkdir(mark), [], []), r"\(EagerPyFunc\) calls Python"),
        (
            lambda x, mark: tf.raw_ops.SaveV2(prefix=mark, tensor_names=["x"], shape_and_slices=[""], tensors=[x]),
            r"\(SaveV2\) writes a file",
        ),
        (
            lambda x, mark: tf.raw_ops.RestoreV2(
                prefix=mark, tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32]
            ),
            r"\(RestoreV2\) reads a file",
        ),
        (
            lambda x, mark: walked(tf.data.TextLineDataset("/etc/passwd")),
            r"\((TextLineDataset\) reads files|\w*(Dataset|Iterator)\w*\) is none of the operators that only compute)",
        ),
        (
            lambda x, mark: walked(tf.data.Dataset.from_tensors(x).cache(mark)),
            r"\w*(Dataset|Iterator)\w*\) (may write files|is none of the operators that only compute)",
        ),
        (lambda x, mark: tf.raw_ops.TFRecordReaderV2(), r"\(TFRecordReaderV2\) is none of the operators"),
        (lambda x, mark: tf.raw_ops.MatchingFiles(pattern="/*"), r"\(MatchingFiles\) is none of the operators"),
    ],
)
def test_savedmodels_that_reach_outside_are_refused(tmp_path: Path, call: Any, words: str) -> None:
    mark = tmp_path / "mark"

    class Evil(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec((None, 3))])  # type: ignore[untyped-decorator]
        def serve(self, x: Any) -> Any:
            call(x, str(mark))
            return x

    module = Evil()
    tf.saved_model.save(module, str(tmp_path / "evil"), signatures=module.serve)
    with pytest.raises(ForbiddenError, match=words) as caught:
        opened(tmp_path / "evil")
    assert "evil: node " in caught.value.sentence
    assert not mark.exists()


def test_a_saver_that_serves_is_refused(tmp_path: Path) -> None:
    """A forged file says that its serving function is the one that saves: saving is then no excuse."""

    class Evil(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec((None, 3))])  # type: ignore[untyped-decorator]
        def serve(self, x: Any) -> Any:
            mark = str(tmp_path / "mark")
            tf.raw_ops.SaveV2(prefix=mark, tensor_names=["x"], shape_and_slices=[""], tensors=[x])
            return x

    module = Evil()
    tf.saved_model.save(module, str(tmp_path / "evil"), signatures=module.serve)
    file = tmp_path / "evil" / "saved_model.pb"
    forged = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    (meta,) = forged.meta_graphs
    meta.saver_def.save_tensor_name = meta.signature_def["serving_default"].outputs["output_0"].name
    # Without the real saver, which nothing excuses any more either: what is refused is what serves.
    saver = [f.signature.name for f in meta.graph_def.library.function if "traced_save" in f.signature.name]
    assert saver
    for kept in (meta.graph_def.node, meta.graph_def.library.function):
        for item in [one for one in kept if any(name in str(one) for name in saver)]:
            kept.remove(item)
    file.write_bytes(forged.SerializeToString())
    with pytest.raises(ForbiddenError, match=r"of __inference_\w*serve\w* \(SaveV2\) writes a file"):
        opened(tmp_path / "evil")


def test_an_operator_in_a_function_s_place_is_refused(small: Any, tmp_path: Path) -> None:
    """A node that calls functions by name may name an operator instead, and a function may be named like one."""
    small.export(tmp_path / "evil", verbose=False)
    file = tmp_path / "evil" / "saved_model.pb"
    whole = file.read_bytes()
    forged = saved_model_pb2.SavedModel.FromString(whole)
    node = next(n for n in forged.meta_graphs[0].graph_def.node if n.op == "StatefulPartitionedCall")
    node.attr["f"].func.attr["inner"].func.name = "ReadFile"
    file.write_bytes(forged.SerializeToString())
    with pytest.raises(ForbiddenError, match=r"\(ReadFile\) reads a file"):
        opened(tmp_path / "evil")
    forged = saved_model_pb2.SavedModel.FromString(whole)
    library = forged.meta_graphs[0].graph_def.library
    library.function.add().signature.name = "ReadFile"
    library.function[0].node_def.add(name="n", op="ReadFile")
    file.write_bytes(forged.SerializeToString())
    with pytest.raises(ForbiddenError, match=r"node n of \w+ \(ReadFile\) reads a file"):
        opened(tmp_path / "evil")


def test_layers_of_all_kinds_are_no_more_than_computing(tmp_path: Path) -> None:
    image, words = keras.Input((8, 8, 3)), keras.Input((6,), dtype="int32")
    seen = keras.layers.Conv2DTranspose(4, 3, activation="gelu")(image)
    seen = keras.layers.DepthwiseConv2D(3)(keras.layers.GroupNormalization(2)(keras.layers.UpSampling2D()(seen)))
    seen = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(seen))
    told = keras.layers.Embedding(9, 8)(words)
    told = keras.layers.MultiHeadAttention(2, 4)(told, told)
    told = keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True))(told)
    told = keras.layers.GRU(4)(keras.layers.LayerNormalization()(told))
    both = keras.layers.Dense(3)(keras.layers.Concatenate()([seen, told]))
    layered = keras.Model([image, words], both)
    layered.export(tmp_path / "exported", verbose=False)
    tf.saved_model.save(layered, str(tmp_path / "saved"))
    for form in ("exported", "saved"):
        assert opened(tmp_path / form).kind == "savedmodel"


@pytest.mark.parametrize("name", ["m.keras", "m.tflite", "m/saved_model.pb"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"garbage" * 99, b"\x1c\0\0\0TFL3" + bytes(64)])
def test_bytes_that_are_none_of_it(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(SkerryError) as caught:
        opened(path if path.parent == tmp_path else path.parent)
    assert caught.value.element
    assert "\n" not in caught.value.sentence


def test_what_is_missing_or_half_is_said(small: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"absent\.keras: no such file"):
        opened(tmp_path / "absent.keras")
    small.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        config = archive.read("config.json")
    with zipfile.ZipFile(tmp_path / "half.keras", "w") as archive:
        archive.writestr("config.json", config)
    with pytest.raises(InvalidError, match=r"half\.keras: cannot be loaded"):
        opened(tmp_path / "half.keras")
    with pytest.raises(InvalidError, match=r"float32 inputs of shape \[batch, 3\]"):
        opened(tmp_path / "m.keras").predict({"input": FACTS})
