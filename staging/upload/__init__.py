"""Publishing a checkpoint: a source's files become objects, and a manifest makes them a checkpoint."""

from staging.upload.estimate import Estimate, estimate
from staging.upload.plan import Plan, UploadOptions, plan, plan_known
from staging.upload.upload import UploadResult, upload

__all__ = [
    "Estimate",
    "Plan",
    "UploadOptions",
    "UploadResult",
    "estimate",
    "plan",
    "plan_known",
    "upload",
]
