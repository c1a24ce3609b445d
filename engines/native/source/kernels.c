/* One table of kernels; compiled once per instruction set with FENHE_VARIANT naming the table. */
#include "blocks.h"
#include "candidates.h"
#include "choosing.h"
#include "prefill.h"
#include "product.h"

#define JOIN(a, b) a##b
#define TABLE(variant) JOIN(fenhe_kernels_, variant)
#define TEXT(x) #x
#define NAME(variant) TEXT(variant)

const Kernels TABLE(FENHE_VARIANT) = {
    .name = NAME(FENHE_VARIANT),
    .norm_row = norm_row,
    .add_row = add_row,
    .swiglu_row = swiglu_row,
    .quantize_row = quantize_row,
    .decode_unit = decode_unit,
    .write_token = write_token,
    .prefill_unit = prefill_unit,
    .product_panel = product_panel,
    .block_panel = block_panel,
    .candidate_row = candidate_row,
    .draw_token = draw_token,
    .find_likeliest = find_likeliest,
};
