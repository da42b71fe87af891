"""Tasks: models with heads, losses, and the LightningModules that wire them."""
