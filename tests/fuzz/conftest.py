"""How long to fuzz: some minutes of other examples each time with `--hypothesis-profile long`."""

from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("short", max_examples=40, derandomize=True, **COMMON)
settings.register_profile("long", max_examples=250, print_blob=True, **COMMON)
settings.load_profile("short")
