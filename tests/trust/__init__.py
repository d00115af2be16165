"""Programs whose log p(y), ELBO or posterior is known by other means, and guides of each."""
