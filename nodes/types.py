"""The wires of this pack. Their names are promises to saved workflows."""

from comfy_api.latest import io

CATEGORY = "PriorCache"
Policy = io.Custom("PRIORCACHE_POLICY")
TraceHandle = io.Custom("PRIORCACHE_TRACE")
PriorTable = io.Custom("PRIORCACHE_PRIOR")
