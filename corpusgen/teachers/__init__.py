"""Teachers: each a file, behind the `Protocol` of `interface`, found by entry point."""
