"""What results say where nothing was decided: the Agent's words, and ours where it has none."""

# The Agent's answer to a fetch that failed, and to ODP not being integrated.
FETCH_FAILED = "failed to fetch qualified segments"
# The Agent takes any key, so these two are ours.
UNKNOWN_KEY = "unknown SDK key"
SDK_KEY_MISSING = "sdkKey is needed: the worker has several"
EXPIRED = "request expired"
