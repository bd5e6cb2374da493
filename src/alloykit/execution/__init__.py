"""Plan a merge as data from headers alone, then run it tensor by tensor."""
