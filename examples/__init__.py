"""Programs that use fedddp."""
