"""Numbers of other packages, checked: each script rebuilds a model that one of them fitted."""
