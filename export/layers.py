"""An index of a graph's layers: the tensors by the names that they have in its module, for an engine that runs layers.

`<name>.layers` beside `<name>.onnx` is a text header, its lines

    posecrafter layers 1
    graph <name>
    number <name> <value>
    tensor <name> <f32|f16> <file> <offset> <bytes> <plain|transposed> <rank> <size> ...
    input <name> <f32|f16> <input> <rank> <size> ...
    data <spaces>

and behind it, from a multiple of 64 bytes on, the tensors whose file is `-`, each at a multiple of 64 bytes from there.
The others lie in a file beside, which the graph reads its weights from too, at an offset from that file's beginning.
Sizes are the module's: a matrix [out, in] that is transposed lies as [in, out]. A line `input` is a tensor that is a
person's: he brings it under the name of the graph's input.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxscript import ir
from torch import Tensor, nn

from posecrafter.export.graphs import Graph, PoseEncoder, Step, TextEncoder, VaeDecoder
from posecrafter.export.nodes import Doubling

ALIGNED = 64
"""Bytes."""

_WORDS = {"float32": "f32", "float16": "f16"}
_PREFIXES = {
    "denoiser": ("denoiser.",),
    "vae_decoder": (),
    "pose_encoder": ("embedding.",),
    "text_encoder": ("encoder.", "text_model."),  # transformers before 5 has the latter
}
_LEFT_OUT = ("controlnet.controlnet_cond_embedding.", "embeddings.position_ids")
"""What another graph computes, and what only counts."""

Content = tuple[str, bytes]
Place = tuple[str, int]
Numbers = Mapping[str, int | float]


def save_layers(graph: Graph, folder: Path, personal: Collection[str] = ()) -> None:
    """Write `<name>.layers` of a graph whose module is the exported copy, behind `save_graph`.

    personal: the parameters that are inputs of the graph. A tensor that lies in the graph's file of weights, as it is
    or transposed, is not written again. Of a network that the numbers do not describe nothing is written, and other
    engines run it.
    """
    if not _described(graph.module):
        return
    there = _external(folder / f"{graph.name}.onnx")
    own: list[NDArray[Any]] = []
    end = 0
    lines = []
    for key, (name, tensor) in tensors_of(graph).items():
        array = tensor.detach().cpu().contiguous().numpy()
        sizes = [str(array.ndim), *map(str, array.shape)]
        if key in personal:
            lines.append(" ".join(["input", name, _WORDS[array.dtype.name], key, *sizes]))
            continue
        (file, offset), order = _find(array, there)
        if file == "-":
            offset = end
            end += array.nbytes + -array.nbytes % ALIGNED
            own.append(array)
        where = f"{file} {offset} {array.nbytes} {order}"
        lines.append(" ".join(["tensor", name, _WORDS[array.dtype.name], where, *sizes]))
    with (folder / f"{graph.name}.layers").open("wb") as written:
        written.write(header_of(graph, lines))
        for array in own:
            written.write(array.tobytes() + bytes(-array.nbytes % ALIGNED))


def header_of(graph: Graph, lines: Iterable[str]) -> bytes:
    """The file until its data: format, graph, what its tensors do not tell by their sizes, and a line a tensor."""
    numbers = (f"number {name} {value!r}" for name, value in _NUMBERS[graph.name](graph.module).items())
    header = "\n".join(["posecrafter layers 1", f"graph {graph.name}", *numbers, *lines, "data"]).encode()
    return header + b" " * (-(len(header) + 1) % ALIGNED) + b"\n"


def _described(module: nn.Module) -> bool:
    """Whether ControlNet is of the UNet's size, and the text encoder's activation one of two."""
    if isinstance(module, Step):
        return module.denoiser.controlnet.size == module.denoiser.unet.size
    return not isinstance(module, TextEncoder) or module.encoder.config.hidden_act in ("quick_gelu", "gelu")


def tensors_of(graph: Graph) -> dict[str, tuple[str, Tensor]]:
    """The module's parameters and buffers in the order of its state dict, each with its name in the index."""
    tensors = {}
    for key, tensor in graph.module.state_dict().items():
        name = key
        for prefix in _PREFIXES[graph.name]:
            name = name.removeprefix(prefix)
        if not name.startswith(_LEFT_OUT):
            tensors[key] = name, tensor
    return tensors


def _external(path: Path) -> dict[Content, Place]:
    """Where a saved graph's weights lie that are in a file of their own."""
    values = [value.const_value for value in ir.load(path).graph.initializers.values()]
    return {
        _content(value.numpy()): (str(value.location), value.offset or 0)
        for value in values
        if isinstance(value, ir.ExternalTensor)
    }


def _find(array: NDArray[Any], there: Mapping[Content, Place]) -> tuple[Place, str]:
    place = there.get(_content(array))
    if place is None and array.ndim == 2:
        place = there.get(_content(array.T))
        if place is not None:
            return place, "transposed"
    return place or ("-", 0), "plain"


def _content(array: NDArray[Any]) -> Content:
    return array.dtype.name, sha256(np.ascontiguousarray(array).tobytes()).digest()


def _denoiser(module: Step) -> Numbers:
    unet = module.denoiser.unet
    size, transformer = unet.size, unet.mid_block.attentions[0]
    numbers = {
        "in_channels": size.in_channels,
        "out_channels": unet.conv_out.out_channels,
        "text_width": size.text_width,
        "layers": size.layers,
        "depth": size.depth,
        "groups": size.groups,
        "eps": size.eps,
        "transformer_eps": transformer.norm.eps,
        "block_eps": transformer.transformer_blocks[0].norm1.eps,
        "linear": int(size.linear),
        "doubles": int(any(isinstance(part, Doubling) for part in unet.modules())),
        "levels": len(size.widths),
    }
    for level, width in enumerate(size.widths):
        numbers[f"width.{level}"] = width
        numbers[f"heads.{level}"] = size.heads[level]
        numbers[f"attention.{level}"] = int(size.attention[level])
    return numbers


def _vae_decoder(module: VaeDecoder) -> Numbers:
    """eps: of the blocks' norms; norm_eps: of the last norm; attention_eps: of the norm before attention."""
    decoder = module.decoder
    norm, attention = decoder.mid_block.resnets[0].norm1, decoder.mid_block.attentions[0]
    numbers = {
        "scaling_factor": module.scaling_factor,
        "in_channels": decoder.conv_in.in_channels,
        "out_channels": decoder.conv_out.out_channels,
        "groups": norm.num_groups,
        "eps": norm.eps,
        "norm_eps": decoder.conv_norm_out.eps,
        "levels": len(decoder.up_blocks),
        "layers": len(decoder.up_blocks[0].resnets),
        "post_quant": int(module.post_quant_conv is not None),
        "attention": int(attention is not None),
    }
    if attention is not None:
        numbers |= {
            "attention_heads": attention.heads,
            "attention_groups": attention.group_norm.num_groups,
            "attention_eps": attention.group_norm.eps,
        }
    return numbers


def _pose_encoder(module: PoseEncoder) -> Numbers:
    """blocks: convolutions between the first and the last; every second one halves."""
    return {"blocks": len(module.embedding.blocks)}


def _text_encoder(module: TextEncoder) -> Numbers:
    """quick_gelu: x sigmoid(1.702 x) and not the exact GELU."""
    config = module.encoder.config
    return {
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "width": config.hidden_size,
        "eps": config.layer_norm_eps,
        "quick_gelu": int(config.hidden_act == "quick_gelu"),
        "tokens": config.max_position_embeddings,
        "vocabulary": config.vocab_size,
    }


_NUMBERS: Mapping[str, Callable[..., Numbers]] = {
    "denoiser": _denoiser,
    "vae_decoder": _vae_decoder,
    "pose_encoder": _pose_encoder,
    "text_encoder": _text_encoder,
}
