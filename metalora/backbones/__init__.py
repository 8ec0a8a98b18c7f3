"""Floor 1: frozen text-to-image models as the rest of the project sees them."""
