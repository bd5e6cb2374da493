"""alloykit inside other frameworks: the only place that imports them."""
