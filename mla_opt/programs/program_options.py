"""Which options are for PyTorch programs."""

from __future__ import annotations

from mla_opt.errors import InputError
from mla_opt.options import Options


def program_options(options: Options) -> Options:
    """Return the options as they are for a program.

    Engines are made of ONNX; fixed buffers are for runtimes that write inputs in place.

    Raises:
        InputError: something is asked for that programs have not.
    """
    if options.target == "tensorrt":
        raise InputError(
            "target 'tensorrt' is not for PyTorch programs: export the program to ONNX first"
        )
    if options.is_paged:
        raise InputError(
            "target 'onnxruntime-paged' is not for PyTorch programs: export the program to ONNX"
            " first"
        )
    if options.is_quantized:
        raise InputError(
            f"cache type '{options.cache_type}' is not for PyTorch programs, which cannot be"
            " given more inputs; use bfloat16 or float16, or export the program to ONNX first"
        )
    if options.cache_mode()[0] == "even":
        raise InputError(
            "cache 'even' is not for PyTorch programs, whose operator takes rows in one tensor, or"
            " as c_kv and k_pe; use keep or packed, or export the program to ONNX first"
        )
    if options.cache_mode()[0] == "static":
        raise InputError(
            "cache 'static' is not for PyTorch programs, whose shapes cannot follow how full a"
            " buffer is; use keep or packed"
        )
    if options.matmul_nbits == "kernel":
        raise InputError(
            "matmul_nbits 'kernel' is not for PyTorch programs, which have no MatMulNBits; export"
            " the program to ONNX first"
        )
    return options
