"""What a GPU makes slow as PyTorch stands: waiting for values, a launch for each operation. The one door to it."""

from rootdiff_torch.cuda._loops import holds, is_on_cpu, isolated, surely_all, while_loop
from rootdiff_torch.cuda._recording import check_device, check_not_made_in_first_step, records_first_step

__all__ = [
    "check_device",
    "check_not_made_in_first_step",
    "holds",
    "is_on_cpu",
    "isolated",
    "records_first_step",
    "surely_all",
    "while_loop",
]
