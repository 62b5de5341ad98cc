"""Measurements a user can repeat. Ratios within one run count; seconds depend on the machine."""
