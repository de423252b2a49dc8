"""Empty until the real requests is imported: nothing can be raised before."""
