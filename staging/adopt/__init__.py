"""Publishing what lies under a prefix already: its objects are read and hashed, and a manifest is added.

    from staging.adopt import AdoptOptions, adopt, plan

`plan` is what can be judged without reading weights, `adopt` the whole flow.
"""

from staging.adopt.adopt import AdoptResult, adopt
from staging.adopt.plan import AdoptOptions, AdoptPlan, plan

__all__ = ["AdoptOptions", "AdoptPlan", "AdoptResult", "adopt", "plan"]
