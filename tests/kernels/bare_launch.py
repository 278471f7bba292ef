"""Launch the builds that can be TensorRT plugins as TensorRT would, on a GPU: from PTX, by the driver, inputs, integers
and outputs alone. Prints a JSON object, build -> relative l2 distance from the truth.
"""

from __future__ import annotations

import ctypes
import json
import re

import numpy as np
import torch

from posecrafter.kernels import key_frame_attention, temporal_attention
from posecrafter.kernels.checks import capability
from posecrafter.kernels.compile import bare_ptx, compile_build

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
TOKENS, KEYS = 45, 77
MOST_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


def distance(op, build, dtype, target):
    driver = ctypes.CDLL("libcuda.so.1")
    made, sizes = compile_build(build, target), build.constants
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    assert driver.cuModuleLoadData(ctypes.byref(module), bare_ptx(made, "alone").encode()) == 0, build.name
    assert driver.cuModuleGetFunction(ctypes.byref(function), module, b"alone") == 0
    assert driver.cuFuncSetAttribute(function, MOST_SHARED, made.shared) == 0
    most = re.search(r"_f(\d+)_", build.name)
    heads, frames = sizes["HEADS"], 3 if most is None else int(most[1]) - 1
    asked = {"prompts": 2, "frames": frames, "tokens": TOKENS, "keys": KEYS, "heads": heads, "head": sizes["D"]}
    inputs = op.inputs(asked, DTYPES[dtype], torch.Generator("cuda").manual_seed(1))
    if op is key_frame_attention:
        integers = (frames * TOKENS, KEYS)
        grid = (-(-integers[0] // sizes["M"]), 2 * heads, 1)
    else:
        integers = (frames, TOKENS * heads)
        few, many = (-(-integers[1] // sizes.get("L", 1)), 2, 1), (integers[1], 2, -(-frames // sizes.get("Q", 1)))
        grid = few if "L" in sizes else many
    out = torch.full_like(inputs["q"], float("nan"))
    values = [ctypes.c_void_p(inputs[name].data_ptr()) for name in "qkv"]
    values += [*map(ctypes.c_int, integers), ctypes.c_void_p(out.data_ptr())]
    given = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    assert driver.cuLaunchKernel(function, *grid, made.threads, 1, 1, made.shared, None, given, None) == 0
    torch.cuda.synchronize()
    wide = {name: x.double().cpu().numpy() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    expected = op.truth(**wide)
    return float(np.linalg.norm(out.double().cpu().numpy() - expected) / np.linalg.norm(expected))


if __name__ == "__main__":
    target = capability(torch.zeros(1, device="cuda"))
    ops = (key_frame_attention, temporal_attention)
    builds = [(op, build, dtype) for op in ops for dtype in DTYPES for build in op.builds(dtype, target)]
    print(json.dumps({build.name: distance(op, build, dtype, target) for op, build, dtype in builds}))
