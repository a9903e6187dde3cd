"""Records in, conclusions out: pure functions without torch and without files."""
