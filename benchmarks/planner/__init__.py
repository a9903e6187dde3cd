"""The planner's estimates against what runs really took: measured on this machine, and published by others."""
