"""Which precision of a student runs for how many rows."""

from dataclasses import dataclass

from models.graphs.precisions import PRECISIONS
from models.student.manifest import HeadKind

KV_PRECISIONS = {"int8": "int8", "float16": "fp16", "float32": "fp32"}
"""What a numpy type of KV is called where people read it."""


def has_int8_kv(precision: str) -> bool:
    """Whether KV of this precision can be kept in int8: fenhe's own operators alone read it."""
    return precision in PRECISIONS and PRECISIONS[precision].needs_native


def int8_kv_problem(precision: str) -> str:
    """Why this precision, one of `PRECISIONS`, cannot keep its KV in int8, and what to do."""
    able = " or ".join(name for name in PRECISIONS if has_int8_kv(name))
    kept = KV_PRECISIONS[PRECISIONS[precision].writer.kv_type]
    return (
        f"kv_precision int8: precision {precision!r} keeps its KV in {kept}; take precision {able}, or leave "
        "`kv_precision` out"
    )


@dataclass(slots=True, kw_only=True, frozen=True)
class PrecisionPlan:
    """`few` maps row counts to variants: the first whose bound is not below the step's rows, else `many`.

    With `few` empty a row's result never depends on how many others run beside it. With `cheap_head` every variant has
    one, and rows use it that do not demand the exact one. With `int8_kv` KV is kept in int8, see `has_int8_kv`.
    """

    many: str
    few: tuple[tuple[int, str], ...] = ()
    cheap_head: bool = False
    int8_kv: bool = False

    @property
    def head(self) -> HeadKind:
        """The head of a row that does not demand the exact one."""
        return "cheap" if self.cheap_head else "exact"

    @property
    def heads(self) -> tuple[HeadKind, ...]:
        """Every head that must be loaded."""
        return ("exact", "cheap") if self.cheap_head else ("exact",)

    @property
    def prefill(self) -> str:
        return self.many

    def decode(self, num_rows: int) -> str:
        return next((variant for bound, variant in self.few if num_rows <= bound), self.many)

    @property
    def variants(self) -> tuple[str, ...]:
        """Every variant that must be loaded, each once."""
        return tuple(dict.fromkeys((self.many, *(variant for _, variant in self.few))))

    @property
    def kv_type(self) -> str:
        """numpy name of the KV element type, which all variants of a plan share."""
        return "int8" if self.int8_kv else PRECISIONS[self.many].writer.kv_type

    @property
    def kv_precision(self) -> str:
        """What KV is kept in, by the name that people read: int8, fp16 or fp32."""
        return KV_PRECISIONS[self.kv_type]

    def describe(self) -> str:
        """Such as `w8a8`, or `int8 up to 1 rows, then w8a8`."""
        few = [f"{variant} up to {bound} rows" for bound, variant in self.few]
        return ", then ".join([*few, self.many])
