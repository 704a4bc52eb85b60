"""The composition root: opens every part in one nursery and hands verified bundles to an orchestrator."""
