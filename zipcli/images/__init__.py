"""Image files in and out: reading, splitting into windows, writing."""
