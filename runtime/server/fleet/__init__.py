"""Many streams on a Ray cluster, each a `Service`, behind one gateway. Needs the extra `fleet`."""
