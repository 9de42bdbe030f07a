"""Code that configurations name: Keras functions, TorchScript, Hugging Face modules, templates, graphs."""

import base64
import io
import json
import pathlib
import zipfile

import pytest

from jaxguard import checkpoints

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CODE = base64.b64encode(b"marshalled").decode()


def keras(folder, layer: dict) -> checkpoints.Code:
    with zipfile.ZipFile(folder / "x.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Functional", "config": {"layers": [layer]}}))
        archive.writestr("model.weights.h5", b"")
    return checkpoints.examine(folder / "x.keras")


def function(module: str | None, name: str) -> dict:
    return {
        "class_name": "Dense",
        "config": {"activation": {"module": module, "class_name": "function", "config": name}},
    }


LAMBDA = {"class_name": "__lambda__", "config": {"code": CODE}}
CALLS = {
    "lambda": ({"class_name": "Lambda", "config": {"name": "l", "function": LAMBDA}}, "keras.layers.Lambda"),
    "lambda of Keras 2": (
        {"class_name": "Lambda", "config": {"function": [CODE, None, None], "function_type": "lambda"}},
        "keras.layers.Lambda",
    ),
    "registered lambda": ({"class_name": "keras>Lambda", "config": {"function": LAMBDA}}, "keras.layers.Lambda"),
    "shape of a lambda": (
        {"class_name": "Lambda", "config": {"function": "relu", "output_shape": LAMBDA}},
        "keras.layers.Lambda",
    ),
    "source as a function": ({"class_name": "Lambda", "config": {"function": "lambda x: x"}}, "keras.layers.Lambda"),
    "deep inside": ({"class_name": "TimeDistributed", "config": {"layer": {"x": [LAMBDA]}}}, "keras.layers.Lambda"),
    "function of a module": (function("os", "system"), "os.system"),
    "unknown module": (function("mine", "f"), "mine.f"),
    "builtin": (function("builtins", "eval"), "builtins.eval"),
    "function of Keras that downloads": (function("keras.utils", "get_file"), "keras.utils.get_file"),
    "function of Keras that loads": (function("keras.models", "load_model"), "keras.models.load_model"),
    "class of a module": ({"module": "subprocess", "class_name": "Popen", "config": {}}, "subprocess.Popen"),
}


@pytest.mark.parametrize("kind", CALLS)
def test_functions_in_a_keras_configuration_are_calls(kind, tmp_path):
    layer, name = CALLS[kind]
    assert [call.callable for call in keras(tmp_path, layer).calls] == [name]


NOTED = {
    "class of one's own": ({"registered_name": "mine>Block", "class_name": "Block", "config": {}}, "custom_objects"),
    "class of a package": ({"module": "mine.layers", "class_name": "Block", "config": {}}, "mine.layers.Block"),
    "named function": (function("builtins", "swish6"), "'swish6', which the loader must be given"),
    "lambda by name": ({"class_name": "Lambda", "config": {"function": "scale"}}, "'scale'"),
}


@pytest.mark.parametrize("kind", NOTED)
def test_what_a_keras_loader_must_be_given_is_a_note(kind, tmp_path):
    layer, told = NOTED[kind]
    code = keras(tmp_path, layer)
    assert not code.calls
    assert told in code.notes[0]


def test_layers_of_keras_are_no_code(tmp_path):
    dense = {"module": "keras.layers", "class_name": "Dense", "registered_name": None, "config": {"units": 2}}
    for layer in (dense, function("keras.activations", "relu"), function("keras.src.ops.nn", "relu")):
        assert keras(tmp_path, layer) == checkpoints.Code()


def test_marshalled_code_in_hdf5():
    """tests/golden/keras_legacy.h5 was saved by Keras with a Lambda layer."""
    (call,) = checkpoints.examine(GOLDEN / "keras_legacy.h5").calls
    assert (call.callable, call.member) == ("keras.layers.Lambda", "model_config")


def torchscript(folder, source: str) -> checkpoints.Code:
    data = b"\x80\x02c__torch__\nNet\n)\x81}X\x01\x00\x00\x00nctorch.jit._pickle\nbuild_intlist\n](K\x01e\x85Rsb."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net/data.pkl", data)
        archive.writestr("net/code/__torch__.py", source)
    (folder / "net.pt").write_bytes(buffer.getvalue())
    return checkpoints.examine(folder / "net.pt")


def test_methods_of_torchscript(tmp_path):
    assert torchscript(tmp_path, "def forward(self, x):\n  return torch.relu(x)\n") == checkpoints.Code()
    aten = "return ops.prim.device(ops.aten.relu(ops.quantized.add(x, x)))"
    assert torchscript(tmp_path, aten) == checkpoints.Code()
    assert "mylib.run" in torchscript(tmp_path, "x = ops.mylib.run(x)").notes[0]
    for call in ("torch.save(x, 'y')", "ops.aten.from_file('y')", "torch.load('y')"):
        assert torchscript(tmp_path, f"a = {call}").calls


def test_modules_beside_a_model(tmp_path):
    inner = tmp_path / "models" / "text_encoder"
    inner.mkdir(parents=True)
    (tmp_path / "model_index.json").write_text('{"_class_name": "Pipeline"}')
    (tmp_path / "models" / "config.json").write_text('{"model_type": "x"}')
    (inner / "config.json").write_text('{"auto_map": {"AutoModel": ["modeling_x.Model", null]}}')
    (inner / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["t.Slow", "t.Fast"]}}')
    (inner / "modeling_x.py").write_text("import os")
    (inner / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    told = [
        "With trust_remote_code a loader would run modeling_x.Model (auto_map in config.json).",
        "With trust_remote_code a loader would run t.Slow, t.Fast (auto_map in tokenizer_config.json).",
        "Python files beside the model: modeling_x.py; with trust_remote_code a loader would run them.",
    ]
    for path in (tmp_path, inner, inner / "model.safetensors"):
        assert [note for note in checkpoints.examine(path).notes if "trust" in note] == told
    assert not checkpoints.examine(tmp_path).calls


def test_python_files_that_belong_to_no_model_are_no_note(tmp_path):
    (tmp_path / "train.py").write_text("")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert checkpoints.examine(tmp_path) == checkpoints.Code()


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat.jinja"])
def test_templates_that_reach_for_internals(name, tmp_path):
    for text, is_noted in (
        ("{% for m in messages %}{{ m['content'] | trim }}{% endfor %}", False),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", True),
        ("{{ x | attr('\\x5f\\x5fclass\\x5f\\x5f') }}", True),
    ):
        (tmp_path / name).write_text(json.dumps({"chat_template": text}) if name.endswith("json") else text)
        assert bool(checkpoints.examine(tmp_path / name).notes) == is_noted


def test_graphs_that_call_python(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\x0a\x01x\x12\x06PyFunc\x1a\x06MatMul")
    assert "PyFunc" in checkpoints.examine(tmp_path / "saved_model.pb").notes[0]
    (tmp_path / "saved_model.pb").write_bytes(b"\x0a\x01x\x12\x06MatMul")
    assert checkpoints.examine(tmp_path / "saved_model.pb") == checkpoints.Code()
