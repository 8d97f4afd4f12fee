"""What the first axis of an array is: it follows from the array's rank and that of the model's input.

With ``r`` the rank of the model's input, an array of rank
``r + 1`` holds samples along its first axis, each fed as it is;
``r``     holds items along its first axis, each fed as ``array[i : i + 1]``, or ``B`` together where the model fixes
          a batch of ``B``;
``r - 1`` is one item without its batch axis; and one of rank 0 for an input of rank 0 is the same for every sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qconvert.errors import DataError
from qconvert.preprocess import fixed
from qconvert.samples.fit import check_dtype, check_shape
from qconvert.samples.npy import Member
from qconvert.samples.types import Array, InputSpec


@dataclass(frozen=True, eq=False)
class Column:
    """The array for one model input: item ``i`` is fed as ``array[i * step : (i + 1) * step]``.

    Attributes:
        spec: The input.
        member: The array.
        step: Rows an item; 0 where the array is one item or the same for all.
        count: Items; None where it is the same for all.
        whole: Whether an item carries its own batch axis inside a row.
    """

    spec: InputSpec
    member: Member
    step: int
    count: int | None
    whole: bool

    def item(self, i: int) -> Array:
        """What item ``i`` contributes to a feed, batch axis included."""
        if self.step == 0:
            array = self.member.whole()
            return array if self.count is None else array[None]
        rows = self.member.rows(i * self.step, (i + 1) * self.step)
        return rows[0] if self.whole else rows


def model_batch(inputs: Sequence[InputSpec], held: Sequence[Mapping[str, Member]]) -> int:
    """Items in one feed: the batch size that every input fixes, unless some array brings batches of its own; else 1."""
    leading = {fixed(spec.shape[0]) for spec in inputs if spec.shape}
    whole = any(len(arrays[s.name].shape) == len(s.shape) + 1 for arrays in held for s in inputs if s.shape)
    common = leading.pop() if len(leading) == 1 and not whole else None
    return common or 1


def column(spec: InputSpec, member: Member, batch: int) -> Column:
    """Reads an array's shape against its input's.

    Raises:
        DataError: Its rank, its shape or its type does not fit.
    """
    where, shape, extra = member.where, member.shape, len(member.shape) - len(spec.shape)
    check_dtype(member.dtype, spec, where)
    if not shape and not spec.shape:
        return Column(spec, member, step=0, count=None, whole=False)
    if extra == 1:
        check_shape(shape[1:], spec, where, shown=shape)
        return Column(spec, member, step=1, count=shape[0], whole=True)
    if extra == -1:
        check_shape((batch, *shape), spec, where, shown=shape)
        return Column(spec, member, step=0, count=1, whole=False)
    step = 1 if batch > 1 or extra else fixed(spec.shape[0]) or 1
    check_shape((batch * step, *shape[1:]) if extra == 0 else shape, spec, where, shown=shape)
    if shape[0] % step:
        raise DataError(
            f"{where} has {shape[0]} rows, model input '{spec.name}' takes {step} at a time", hint="save whole samples"
        )
    return Column(spec, member, step=step, count=shape[0] // step, whole=False)
