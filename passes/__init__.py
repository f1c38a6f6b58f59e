"""The compiler, one pass a file, in the order they run.

1. `drop_no_ops`: let nothing that does nothing lie between a value and its readers
2. `take_out_roundings`: read quantized activations as they are before they are rounded
3. `find_latent_attention`: find every latent attention; say why the others are none
4. `extract_weights`: read W_UK and W_UV off the graph by running it; prove each site
5. `check_roundings`: say which attentions lose the quantization of activations, or refuse
6. `choose_form`: decide what is folded, and how long queries are served
7. `read_causal_masks`: for packed tokens, show that masks are causal, and let operators mask
8. `compress_cache`: cache latent rows instead of expanded keys and values
9. `absorb_weights`: put W_UK on the query and W_UV on the output, attend to latent rows
10. `release_shapes`: let nothing be computed only for its shape to be read
11. `fuse_cache_append`: let the operator append to the cache
12. `narrow_cache`: on request, keep the rows of the cache in 16 bits
13. `quantize_cache`: on request, keep them in 8 bits, with scales
14. `add_prefill_branch`: give long queries the expanded form, by a condition on their length
15. `write_cache_in_place`: for static caches, buffers that are written in place
16. `hold_weights`: one operator that holds W_UK and W_UV as the model stores them, where the
    target has it
17. `lower_to_standard_ops`: for the portable target, no custom operator is left
18. `lower_to_tensorrt`: for engines, the prefill or the decode graph
19. `lower_to_paged_attention`: for servers, ONNX Runtime's operator over packed tokens and blocks
20. `put_back_roundings`: quantize activations again outside of what was rewritten
21. `clean_up`: drop what nothing reads any more
22. `replace_matmul_nbits`: on request, let the kernel library run the quantized layers

Passes of other packages are found through the entry-point group ``mla_opt.passes``.
"""

from __future__ import annotations

if __name__ != "mla_opt.passes":
    raise ImportError("import the passes as mla_opt.passes, not from the folder they lie in")

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Literal

from mla_opt.errors import InputError
from mla_opt.pipeline import Pass

ENTRY_POINT_GROUP = "mla_opt.passes"

BUILT_IN: dict[str, str] = {
    "drop_no_ops": "DropNoOps",
    "take_out_roundings": "TakeOutRoundings",
    "find_latent_attention": "FindLatentAttention",
    "extract_weights": "ExtractWeights",
    "check_roundings": "CheckRoundings",
    "choose_form": "ChooseForm",
    "read_causal_masks": "ReadCausalMasks",
    "compress_cache": "CompressCache",
    "absorb_weights": "AbsorbWeights",
    "release_shapes": "ReleaseShapes",
    "fuse_cache_append": "FuseCacheAppend",
    "narrow_cache": "NarrowCache",
    "quantize_cache": "QuantizeCache",
    "add_prefill_branch": "AddPrefillBranch",
    "write_cache_in_place": "WriteCacheInPlace",
    "hold_weights": "HoldWeights",
    "lower_to_standard_ops": "LowerToStandardOps",
    "lower_to_tensorrt": "LowerToTensorrt",
    "lower_to_paged_attention": "LowerToPagedAttention",
    "put_back_roundings": "PutBackRoundings",
    "clean_up": "CleanUp",
    "replace_matmul_nbits": "ReplaceMatmulNbits",
}
"""Pass names and their classes, in pipeline order. Modules are imported when they are used."""


def available() -> dict[str, Callable[[], type[Pass]]]:
    """Every pass by name, each with what imports its class."""
    found: dict[str, Callable[[], type[Pass]]] = {
        entry.name: entry.load for entry in entry_points(group=ENTRY_POINT_GROUP)
    }
    found.update({name: _loader(name, kind) for name, kind in BUILT_IN.items()})
    return found


def _loader(module: str, kind: str) -> Callable[[], type[Pass]]:
    def load() -> type[Pass]:
        loaded: type[Pass] = getattr(import_module(f"mla_opt.passes.{module}"), kind)
        return loaded

    return load


def load(name: str) -> type[Pass]:
    """The class of a pass.

    Raises:
        InputError: there is no such pass; the message lists those there are.
    """
    if name in BUILT_IN:
        return _loader(name, BUILT_IN[name])()
    passes = available()
    if name not in passes:
        raise InputError(f"no pass is called {name!r}; there are {', '.join(passes)}")
    return passes[name]()


def names(
    *,
    portable: bool = False,
    static: bool = False,
    narrow: bool = False,
    quantize: bool = False,
    hold_weights: bool = False,
    tensorrt: Literal["prefill", "decode"] | None = None,
    paged: bool = False,
    matmul_nbits: bool = False,
) -> Sequence[str]:
    """The passes that run by default, in order; some of them only when asked for.

    ``tensorrt`` names the phase whose graph is made; that of prefill makes its own buffers.
    """
    optional = {
        "lower_to_standard_ops": portable,
        "lower_to_tensorrt": tensorrt is not None,
        "add_prefill_branch": tensorrt is None and not hold_weights and not paged,
        "hold_weights": hold_weights,
        "write_cache_in_place": static and tensorrt != "prefill",
        "narrow_cache": narrow,
        "quantize_cache": quantize,
        "read_causal_masks": paged,
        "lower_to_paged_attention": paged,
        "replace_matmul_nbits": matmul_nbits,
    }
    return [name for name in BUILT_IN if optional.get(name, True)]
