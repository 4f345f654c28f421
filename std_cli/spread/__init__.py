"""One request on several devices or machines: units of work, run apart and joined again."""
