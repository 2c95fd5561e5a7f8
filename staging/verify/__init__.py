"""Is what is there still what was published? For prefixes (`prefix`) and directories (`directory`)."""

from staging.verify.directory import verify_directory
from staging.verify.prefix import verify_prefix
from staging.verify.verification import Level, Problem, Verification

__all__ = ["Level", "Problem", "Verification", "verify_directory", "verify_prefix"]
