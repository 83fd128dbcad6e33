"""The wires of this pack, whose names are promises to saved workflows, and where its nodes stand in the menu."""

from comfy_api.latest import io

CATEGORY = "PriorCache"
POLICIES, PRIORS, LOADERS, DEMO = (f"{CATEGORY}/{name}" for name in ("policies", "priors", "loaders", "demo"))
Policy = io.Custom("PRIORCACHE_POLICY")
TraceHandle = io.Custom("PRIORCACHE_TRACE")
PriorTable = io.Custom("PRIORCACHE_PRIOR")
