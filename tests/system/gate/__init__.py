"""The gate: what an app and the node have to get through, again and again, before either is called done."""
