"""What the fork server imports before it forks; for nobody else, since importing this takes seconds."""

from dt2it_pipeline.engines.lean_processes import skip_unused
from dt2it_pipeline.engines.torchvision_shim import ensure_torchvision

skip_unused()
ensure_torchvision()

from dt2it_pipeline.reward.data import encoding_workers  # noqa: E402
from dt2it_pipeline.reward.families import FAMILIES  # noqa: E402

_IMPORTED = (encoding_workers, [family.processor_class() for family in FAMILIES.values()])
