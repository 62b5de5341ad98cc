"""From a configuration to a federation: resolve, load, check, assemble."""
