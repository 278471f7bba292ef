from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxscript import ir

from posecrafter.export import save
from posecrafter.export.export import ExportOptions, exported_copy
from posecrafter.export.graphs import Graph, doubles_exactly, make_graphs, make_ranges
from posecrafter.export.layers import save_layers
from posecrafter.export.run import Run
from posecrafter.finetune.base import Base
from posecrafter.manifest import Manifest

GRAPHS = ("pose_encoder", "denoiser", "vae_decoder", "text_encoder")
DTYPES = {"f32": np.float32, "f16": np.float16}


@dataclass(frozen=True)
class Entry:
    """One line `tensor` and what it points to."""

    file: str
    offset: int
    order: str
    values: np.ndarray


@dataclass(frozen=True)
class Input:
    """One line `input`: what the graph calls a person's tensor."""

    dtype: type
    input: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Index:
    graph: str
    numbers: dict[str, float]
    tensors: dict[str, Entry]
    inputs: dict[str, Input]
    start: int


def read_index(path: Path) -> Index:
    """What a reader of the format sees; it believes no line that it cannot check."""
    text, binary = path.read_bytes().split(b"\ndata", 1)
    start = len(text) + len(b"\ndata") + binary.index(b"\n") + 1
    assert not binary[: binary.index(b"\n")].strip(b" ")
    magic, graph, *lines = [line.split(" ") for line in text.decode().split("\n")]
    assert magic == ["posecrafter", "layers", "1"]
    assert graph[0] == "graph"
    numbers = {words[1]: float(words[2]) for words in lines if words[0] == "number"}
    tensors = {words[1]: read_entry(path, start, words[2:]) for words in lines if words[0] == "tensor"}
    inputs = {words[1]: read_input(words[2:]) for words in lines if words[0] == "input"}
    assert len(numbers) + len(tensors) + len(inputs) == len(lines), "a line of another kind, or a name twice"
    return Index(graph[1], numbers, tensors, inputs, start)


def read_input(words: list[str]) -> Input:
    word, name, rank, *sizes = words
    assert len(sizes) == int(rank)
    return Input(DTYPES[word], name, tuple(int(size) for size in sizes))


def read_entry(path: Path, start: int, words: list[str]) -> Entry:
    word, file, offset, count, order, rank, *sizes = words
    begin = int(offset) + (start if file == "-" else 0)
    stored = (path if file == "-" else path.with_name(file)).read_bytes()[begin : begin + int(count)]
    shape = [int(size) for size in sizes]
    assert len(shape) == int(rank)
    assert order in ("plain", "transposed")
    values = np.frombuffer(stored, DTYPES[word])
    values = values.reshape(shape) if order == "plain" else values.reshape(shape[::-1]).T
    return Entry(file, int(offset), order, values)


@pytest.fixture(scope="module")
def exported(graphs: dict[str, Graph], tuned: Base) -> dict[str, Graph]:
    """The graphs with the modules that the tiny bundle was traced from."""
    doubles = doubles_exactly(make_ranges(tuned, ExportOptions())["h"])
    return {
        name: replace(graph, module=exported_copy(graph.module, ExportOptions(), doubles))
        for name, graph in graphs.items()
    }


def state_of(graph: Graph) -> dict[str, torch.Tensor]:
    """The module's tensors by the names that the index is to have."""
    prefix = {"denoiser": "denoiser.", "vae_decoder": "", "pose_encoder": "embedding.", "text_encoder": "encoder."}
    named = {key.removeprefix(prefix[graph.name]): value for key, value in graph.module.state_dict().items()}
    named = {key.removeprefix("text_model."): value for key, value in named.items()}
    left_out = ("controlnet.controlnet_cond_embedding.", "embeddings.position_ids")
    return {key: value for key, value in named.items() if not key.startswith(left_out)}


def copied(bundle: Path, name: str, folder: Path) -> Path:
    """A graph's files but its index, to write another beside."""
    for path in (bundle / "graphs").glob(f"{name}.*"):
        if path.suffix != ".layers":
            shutil.copyfile(path, folder / path.name)
    return folder / f"{name}.layers"


@pytest.mark.parametrize("name", GRAPHS)
def test_every_tensor_of_the_module_reads_back_to_the_bit(
    tiny_bundle: Path, exported: dict[str, Graph], name: str
) -> None:
    index, state = read_index(tiny_bundle / "graphs" / f"{name}.layers"), state_of(exported[name])
    assert index.graph == name
    assert list(index.tensors) == list(state)
    for key, value in state.items():
        np.testing.assert_array_equal(index.tensors[key].values, value.numpy(), err_msg=key, strict=True)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_index_holds_all_that_the_graph_computes_with(tiny_bundle: Path, name: str) -> None:
    index = read_index(tiny_bundle / "graphs" / f"{name}.layers")
    there = {entry.values.tobytes() for entry in index.tensors.values()}
    there |= {entry.values.T.tobytes() for entry in index.tensors.values()}
    for initializer in onnx.load(tiny_bundle / "graphs" / f"{name}.onnx").graph.initializer:
        value = onnx.numpy_helper.to_array(initializer)
        assert value.nbytes < 1024 or value.tobytes() in there, initializer.name


@pytest.mark.parametrize("name", GRAPHS)
def test_the_binary_part_and_its_tensors_are_aligned(tiny_bundle: Path, name: str) -> None:
    path = tiny_bundle / "graphs" / f"{name}.layers"
    index = read_index(path)
    own = [entry for entry in index.tensors.values() if entry.file == "-"]
    assert index.start % 64 == 0
    assert all(entry.offset % 64 == 0 for entry in own)
    last = max(own, key=lambda entry: entry.offset)
    assert path.stat().st_size == index.start + last.offset + last.values.nbytes + -last.values.nbytes % 64


def test_the_denoisers_matrices_are_not_written_twice(tiny_bundle: Path) -> None:
    tensors = read_index(tiny_bundle / "graphs" / "denoiser.layers").tensors
    large = {key: entry for key, entry in tensors.items() if entry.values.nbytes >= 2**16}
    assert len(large) > 10
    assert {entry.file for entry in large.values()} == {"denoiser.weights"}
    assert sum(entry.values.nbytes for entry in tensors.values() if entry.file == "-") < 2**16
    value = tensors["unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.value.weight"]
    assert (value.file, value.order) == ("denoiser.weights", "transposed")


def test_weights_beyond_what_lies_inline_are_written_once_without_a_copy_of_the_graph(
    tiny_bundle: Path, exported: dict[str, Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save, "INLINE_BYTES", 2**15)
    save.save_graph(ir.load(tiny_bundle / "graphs" / "text_encoder.onnx"), tmp_path, "text_encoder")
    save_layers(exported["text_encoder"], tmp_path)
    sizes = {path.suffix: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {".onnx", ".weights", ".layers"}
    assert sizes[".onnx"] + sizes[".layers"] < sizes[".weights"] / 2
    tensors = read_index(tmp_path / "text_encoder.layers").tensors
    assert {entry.file for entry in tensors.values() if entry.values.nbytes >= 2**12} == {"text_encoder.weights"}


def test_the_denoisers_numbers_are_those_of_its_configuration(tiny_bundle: Path) -> None:
    levels = {"width": (32, 64, 64), "heads": (2, 2, 2), "attention": (1, 1, 0)}
    assert read_index(tiny_bundle / "graphs" / "denoiser.layers").numbers == {
        "in_channels": 6, "out_channels": 6, "text_width": 32, "layers": 1, "depth": 1, "groups": 8, "linear": 0,
        "eps": 1e-5, "transformer_eps": 1e-6, "block_eps": 1e-5, "doubles": 1, "levels": 3,
        **{f"{name}.{level}": value for name, values in levels.items() for level, value in enumerate(values)},
    }  # fmt: skip


def test_the_other_graphs_numbers_are_those_of_their_configurations(tiny_bundle: Path, tuned: Base) -> None:
    numbers = {name: read_index(tiny_bundle / "graphs" / f"{name}.layers").numbers for name in GRAPHS}
    assert numbers["pose_encoder"] == {"blocks": 6}
    assert numbers["text_encoder"] == {
        "layers": 2, "heads": 2, "width": 32, "eps": 1e-5, "quick_gelu": 1, "tokens": 16, "vocabulary": 514,
    }  # fmt: skip
    assert numbers["vae_decoder"] == {
        "scaling_factor": tuned.scaling_factor, "in_channels": 6, "out_channels": 3, "groups": 4, "eps": 1e-6,
        "norm_eps": 1e-6, "levels": 4, "layers": 2, "post_quant": 1,
        "attention": 1, "attention_heads": 1, "attention_groups": 4, "attention_eps": 1e-6,
    }  # fmt: skip


def test_sizes_that_do_not_halve_keep_doubling_and_convolution_apart(tiny_bundle: Path, odd_bundle: Path) -> None:
    even, odd = (read_index(bundle / "graphs" / "denoiser.layers") for bundle in (tiny_bundle, odd_bundle))
    assert (even.numbers["doubles"], odd.numbers["doubles"]) == (1, 0)
    name = "unet.up_blocks.0.upsamplers.0.conv.weight"
    assert even.tensors[name].values.shape == (64, 64, 4, 4)
    assert odd.tensors[name].values.shape == (64, 64, 3, 3)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_same_network_gives_the_same_bytes(
    tiny_bundle: Path, exported: dict[str, Graph], tmp_path: Path, name: str
) -> None:
    written = copied(tiny_bundle, name, tmp_path)
    save_layers(exported[name], tmp_path)
    assert written.read_bytes() == (tiny_bundle / "graphs" / written.name).read_bytes()


def test_halves_stay_halves_and_what_the_graph_lacks_is_written(
    tiny_bundle: Path, graphs: dict[str, Graph], tmp_path: Path
) -> None:
    written = copied(tiny_bundle, "denoiser", tmp_path)
    module = exported_copy(graphs["denoiser"].module, ExportOptions(precision="fp16"), doubles=True)
    save_layers(replace(graphs["denoiser"], module=module), tmp_path)
    index, state = read_index(written), state_of(replace(graphs["denoiser"], module=module))
    assert {(entry.file, entry.values.dtype.name) for entry in index.tensors.values()} == {("-", "float16")}
    for key, value in state.items():
        np.testing.assert_array_equal(index.tensors[key].values, value.numpy(), err_msg=key, strict=True)


def test_a_controlnet_of_another_size_gets_no_index(
    tiny_bundle: Path, exported: dict[str, Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = copied(tiny_bundle, "denoiser", tmp_path)
    control = exported["denoiser"].module.denoiser.controlnet
    monkeypatch.setattr(control, "size", replace(control.size, heads=(4, 2, 2)))
    save_layers(exported["denoiser"], tmp_path)
    assert not written.exists()


def test_a_shared_bundles_index_names_the_inputs_that_are_a_persons_and_holds_nobodys_values(
    shared_bundle: Path, people: dict[str, Path]
) -> None:
    graph = make_graphs(Run.read(people["a"]).load())["denoiser"]
    graph = replace(graph, module=exported_copy(graph.module, ExportOptions(), doubles=True))
    index, state = read_index(shared_bundle / "graphs" / "denoiser.layers"), state_of(graph)
    personal = Manifest.read(shared_bundle).shared["denoiser"]
    assert {entry.input: list(entry.shape) for entry in index.inputs.values()} == personal
    assert {entry.dtype for entry in index.inputs.values()} == {np.float32}
    assert {f"denoiser.{name}" for name in index.inputs} == set(personal)
    assert index.tensors.keys() | index.inputs.keys() == state.keys()
    for key, entry in index.tensors.items():
        np.testing.assert_array_equal(entry.values, state[key].numpy(), err_msg=key, strict=True)
    for name in ("pose_encoder", "vae_decoder", "text_encoder"):
        assert not read_index(shared_bundle / "graphs" / f"{name}.layers").inputs
