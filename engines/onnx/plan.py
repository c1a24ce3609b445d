"""Which precision of a student runs for how many rows."""

from dataclasses import dataclass

from models.graphs.precisions import PRECISIONS
from models.student.manifest import HeadKind


@dataclass(slots=True, kw_only=True, frozen=True)
class PrecisionPlan:
    """`few` maps row counts to variants: the first whose bound is not below the step's rows, else `many`.

    With `few` empty a row's result never depends on how many others run beside it. With `cheap_head` every variant has
    one, and rows use it that do not demand the exact one.
    """

    many: str
    few: tuple[tuple[int, str], ...] = ()
    cheap_head: bool = False

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
        return PRECISIONS[self.many].writer.kv_type

    def describe(self) -> str:
        """Such as `w8a8`, or `int8 up to 1 rows, then w8a8`."""
        few = [f"{variant} up to {bound} rows" for bound, variant in self.few]
        return ", then ".join([*few, self.many])
