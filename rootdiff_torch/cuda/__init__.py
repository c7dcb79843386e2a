"""What a GPU makes slow as PyTorch stands: waiting for values, a launch for each operation. The one door to it."""

from rootdiff_torch.cuda._loops import holds as holds
from rootdiff_torch.cuda._loops import is_on_cpu as is_on_cpu
from rootdiff_torch.cuda._loops import isolated as isolated
from rootdiff_torch.cuda._loops import surely_all as surely_all
from rootdiff_torch.cuda._loops import while_loop as while_loop
from rootdiff_torch.cuda._recording import check_device as check_device
from rootdiff_torch.cuda._recording import check_not_made_in_first_step as check_not_made_in_first_step
from rootdiff_torch.cuda._recording import records_first_step as records_first_step
