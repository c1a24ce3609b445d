"""Compiled ONNX Runtime operators for the CPU, optional: attention over KV slots, int8 products, norms that quantise;
and the drawing of tokens, which Python calls (`choosing.py`).

Owns the C source, its compilation on first use and the decision whether to trust it. Knows no graph, no engine.

Domain `fenhe`, version 1. Inputs and outputs in this order; `?` may be left out (an empty name in the middle).
H, F widths; D head dimension; N positions of a slot; P rotary positions; float32 unless said.

    SkipRmsNormQuantize(x[B,S,H], gamma[H], skip[B,S,H]?, skip_row_scale[B,S,1]?; epsilon)
        -> q[B,S,H] uint8, row_scale[B,S,1], sum[B,S,H]?                  sum = x + skip * skip_row_scale
    SkipRmsNorm(x, gamma, skip?, skip_row_scale?; epsilon) -> normed[B,S,H], sum[B,S,H]?
    ScaleAdd(x, skip, skip_row_scale?) -> sum
    SwigluQuantize(gate_up[B,S,2*F], row_scale[B,S,1]; hadamard_parts)
        -> q[B,S,F] uint8, row_scale[B,S,1]                  after mixing that many equal parts; a power of two, 1: none
    QuantizeRows(x[B,S,H]) -> q[B,S,H] uint8, row_scale[B,S,1]
    QuantizedProduct(q[B,S,K] uint8, weight[K,N] int8, column_scale[N], row_scale[B,S,1]?) -> product[B,S,N]
        weight and its scale are constants, packed at the first call; K a multiple of 4; zero point 128
    NestedProduct(q[B,S,K] uint8, rows_by_width[W] int32, weight[K,N1] int8, column_scale[N1],
                  (weight[K,Ni] int8, column_scale[Ni])? W-1 times)
        -> product[B,S,N]                              N the sum of all Ni, these multiples of 32 but for the last
        the first weight for all rows, each further one for those of the next width up, the last for the widest; a
        row's columns of weights that it does not run are undefined
    NestedSwigluQuantize(gate_up[B,S,2*F], row_scale[B,S,1], rows_by_width[W] int32, neurons[W] int32,
                         hadamard_parts[W] int32)
        -> q[B,S,F] uint8, row_scale[B,S,1]
        SwigluQuantize of each row's own neurons, these in blocks as NestedProduct has them, each block's gate before
        its up; what lies behind a row's neurons is undefined
    WidthProduct(q[B,S,K] uint8, rows_by_width[W] int32, weight[K,N] int8, column_scale[N],
                 (weight[Ki,N] int8, column_scale[N])? W-1 times) -> product[B,S,N]
        a weight per width, the widest first, for the first Ki values of that width's rows; one left out is the first
    CandidateLogits(x[T,K] uint8, x_scale[T,1], p[T,R] uint8, p_scale[T,1], preview[R,V] int8, preview_scale[V],
                    bias[V], rows[V,K] int8, rows_scale[V], frequent[F] int32; num_candidates, reach) -> logits[T,V]
        p @ preview + bias for every token; x @ rows.T, with the bits of QuantizedProduct, for the tokens of `frequent`
        and those whose preview is at most `reach` below the best, at most `num_candidates`; weights are constants
    SlotAttention(qkv[B,S,(NH+2*KVH)*D], qkv_row_scale[B,S,1], past_k[B,KVH,N,D] float16, past_v float16,
                  seqlens_k[B] int32, cos[P,D/2], sin[P,D/2], qkv_bias[(NH+2*KVH)*D]?, q_norm[D]?, k_norm[D]?;
                  num_heads, kv_num_heads, scale, local_window_size, norm_epsilon)
        -> q[B,S,NH*D] uint8, row_scale[B,S,1], present_k[B,KVH,N,D] float16, present_v float16

KV in int8: past_k and present_k hold a token's key and value (int8, D bytes each) where halves have the key, and past_v
and present_v [B,KVH,2*N/D,D] two float16 for each position, the scale of its key and that of its value: scale =
max|x| / 127, rounded to float16; a value is q * scale. The shapes tell, so that a graph written for halves serves both.

Rows in blocks: q[B,S,K] int8, block_scale[B,S,K/32], block_sums[B,S,K/16] int32, the last one the values of each half
block added up; K a multiple of 32. A value of q is round(x / block_scale), block_scale = max|x| / 127 of its block.

    SkipRmsNormQuantizeBlocks(x[B,S,H], gamma[H], skip[B,S,H]?; epsilon)
        -> q[B,S,H] int8, block_scale, block_sums, sum[B,S,H]?                   sum = x + skip
    SwigluQuantizeBlocks(gate_up[B,S,2*F]) -> q[B,S,F] int8, block_scale, block_sums
    QuantizeBlocks(x[B,S,H]) -> q[B,S,H] int8, block_scale, block_sums
    BlockProduct(q[B,S,K] int8, block_scale, block_sums, weights[bytes] uint8; offset, second_offset, third_offset)
        -> product[B,S,N]
        the matrices that begin at these bytes of `weights` (below 0: none), side by side, in the layout of
        models/graphs/block_layout.py; read where they lie, never copied
    BlockSlotAttention(the inputs and attributes of SlotAttention, without or with qkv_row_scale)
        -> q[B,S,NH*D] int8, block_scale, block_sums, present_k, present_v

A quantised row is round(x / row_scale) + 128 with row_scale = max|x| / 127; a row of zeros has scale 0 and q 128.
Rows of several widths are sorted widest first: `rows_by_width` says how many are at least as wide as each width, the
widest first; the last number is the batch. `neurons` falls from F in the same order. At most 8 widths.

All attributes are required. `seqlens_k` is the last written position, past + S - 1; rows may differ for any S.
Sequences of any lengths may lie one behind the other instead, each of their tokens a row (S = 1): `seqlens_k` is then
[-count, then of each sequence its number of tokens, its slot of past_k, its last written position], in the order of the
rows, no slot twice. Each has the bits that it has alone.
`local_window_size` counts the keys a query sees, its own included; -1: all. Bind present to the memory of past:
otherwise the whole cache is copied. A row's result is the same bits whatever else is in the batch and however many
threads run, and a prompt gives the same bits however it is cut into pieces of two or more tokens; single tokens
(S = 1) take another order of summation and agree to about 1e-6. Where the processor has AVX512-BF16, queries, weights
and what is written into a cache of halves are rounded to bf16, for prompts and single tokens alike.
"""

import logging
from functools import cache
from pathlib import Path

from engines.native.build import BuildError, build_library, find_library, library_name, own_variant
from engines.native.check import find_fault, is_damaged
from models.errors import reason_of

logger = logging.getLogger(__name__)


@cache
def library_path(cache_folder: Path) -> Path | None:
    """The library for `SessionOptions.register_custom_ops_library`, compiled and tried once per machine, and again when
    it was damaged since.

    None, with one logged reason, where there is no compiler or the trial failed: serve with stock operators.
    """
    try:
        library, wanted = find_library(cache_folder), own_variant()
        if library is not None and library.parent == cache_folder and is_damaged(library, cache_folder):
            logger.warning("native operators damaged library=%s: compiled again", library)
            wanted = None if library.name == library_name() else wanted  # in its place
            library = None
        library = library or build_library(cache_folder, wanted)
        fault = find_fault(library, cache_folder)
    except BuildError as error:
        logger.info("native operators unavailable reason=%s", error)
        return None
    except OSError as error:
        logger.warning("native operators unavailable reason=%s", reason_of(error))
        return None
    if fault is not None:
        logger.warning("native operators rejected library=%s reason=%s", library, fault)
        return None
    logger.info("native operators ready library=%s instructions=%s", library, own_variant() or "generic")
    return library
