"""What a loss is taken of: one answer a row, or that of each member of a model that is several."""

from __future__ import annotations

from torch import Tensor, nn

from llmtool.core.contracts import Batch


def member_outputs(model: nn.Module, batch: Batch) -> Tensor:
    """(B, K, C): outputs of the K members of a model that has `members`; of any other one its own, K = 1.

    Each member learns for itself, by the mean of the members' losses: the loss of their mean would let them
    make up for each other's errors (https://arxiv.org/abs/2410.24210, section 3.3).
    """
    members = getattr(model, "members", None)
    if members is None:
        outputs: Tensor = model(*batch.arguments)  # (B, C)
        return outputs.unsqueeze(1)
    found: Tensor = members(batch.inputs, batch.segments)
    return found
