"""The other methods of the comparison, each written from its paper: `batches` -> `loop` -> a module a method."""
