"""Publishing a checkpoint: a source's files become objects, and a manifest makes them a checkpoint."""

from staging.upload.estimate import Estimate, estimate
from staging.upload.upload import UploadOptions, UploadResult, size_up, upload

__all__ = ["Estimate", "UploadOptions", "UploadResult", "estimate", "size_up", "upload"]
